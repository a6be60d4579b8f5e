"""Random requests to vLLM's server with the embedded checkpoint, and what transformers answers to the same."""

import base64
import io
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from serving import picture


M = 16
QUESTIONS = ("Is there any footwear?", "What is there most of?", "List the items in the top row.", "List the items.")
NEW_TOKENS, CANCELLED_TOKENS = 24, 400
# How often each comes, in proportion.
KINDS = {
    "number": 6,
    "default": 1,
    "images": 3,
    "items": 1,
    "turns": 2,
    "auto": 3,
    "text": 1,
    "bad": 2,
    "cancelled": 2,
}
BUDGETS = ("auto", {"levels": [1, 4, 16], "confidence": 0.85, "num_probed_tokens": 3})
BAD_NUMBERS = (0, M + 1, -1, "4", 4.5, True, None, [1, 2, 3, 4], {"levels": [1, 99]}, {"level": [1]})
NOT_A_PICTURE = "data:image/png;base64," + base64.b64encode(b"no picture").decode()


@dataclass(frozen=True)
class Request:
    """
    Args:
        kind: One of [`KINDS`].
        body: Of OpenAI's chat completions.
        hangs_up_after: Events of its stream, after which the client is gone; 0: while it waits for the first.
    """

    kind: str
    body: dict
    hangs_up_after: int | None = None


class Load:
    """
    Args:
        model: As the server calls it.
        num_pictures: How many there are. Half of all requests show one of the first four.
    """

    def __init__(self, model: str, mosaics: list[Path], num_pictures: int, rng: random.Random):
        self.model, self.rng = model, rng
        opened = [Image.open(path) for path in mosaics]
        self.urls = [picture(opened[i % len(opened)], rng) for i in range(num_pictures)]

    def request(self, kind: str | None = None) -> Request:
        """One of a kind, by default of a random one."""
        rng = self.rng
        kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
        body = {"model": self.model, "temperature": 0, "max_tokens": NEW_TOKENS, "return_token_ids": True}
        body["stream"] = rng.random() < 0.5
        kwargs, hangs_up_after = {}, None
        images = {"images": rng.choice((2, 3)), "items": 2, "text": 0}.get(kind, 1)
        messages = self.messages(images)
        if kind in ("number", "turns", "cancelled"):
            kwargs["num_visual_tokens"] = rng.randint(1, M)
        if kind == "images":
            kwargs["num_visual_tokens"] = [rng.randint(1, M) for _ in range(images)]
        if kind == "items":
            messages[0]["content"][rng.randrange(images)]["num_visual_tokens"] = rng.randint(1, M)
        if kind == "turns":
            messages += [{"role": "assistant", "content": "coat, bag"}, *self.messages(0)]
        if kind == "auto":
            kwargs["num_visual_tokens"] = rng.choice(BUDGETS)
        if kind == "text":  # vLLM leaves BOS to the chat template, where there is no image
            body["add_special_tokens"] = True
        if kind == "bad":
            bad = rng.choice((*BAD_NUMBERS, "keyword", "picture"))
            if bad == "keyword":
                kwargs["num_visual_token"] = 4
            elif bad == "picture":
                messages[0]["content"][0]["image_url"]["url"] = NOT_A_PICTURE
            else:
                kwargs["num_visual_tokens"] = bad
        if kind == "cancelled":
            body |= {"stream": True, "max_tokens": CANCELLED_TOKENS, "ignore_eos": True}
            hangs_up_after = rng.choice((0, 2, 8, 64))
            if rng.random() < 0.3:  # while it climbs
                kwargs["num_visual_tokens"] = {"levels": list(range(1, 9)), "confidence": 1.0, "num_probed_tokens": 16}
        if kwargs:
            body["mm_processor_kwargs"] = kwargs
        return Request(kind, {**body, "messages": messages}, hangs_up_after)

    def messages(self, images: int) -> list[dict]:
        rng = self.rng
        urls = [rng.choice(self.urls[:4] if rng.random() < 0.5 else self.urls) for _ in range(images)]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": [*content, {"type": "text", "text": rng.choice(QUESTIONS)}]}]


def image_of(item: dict) -> dict:
    """A content item as transformers takes it."""
    if item["type"] != "image_url":
        return item
    data = base64.b64decode(item["image_url"]["url"].partition(",")[2])
    own = {name: value for name, value in item.items() if name == "num_visual_tokens"}
    return {"type": "image", "image": Image.open(io.BytesIO(data)), **own}


MODEL, PROCESSOR = None, None


def start_transformers(checkpoint: str) -> None:
    """In a process of its own, since vLLM changes the classes of transformers."""
    global MODEL, PROCESSOR
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import mqt_llava  # noqa: F401  (registers the model)

    torch.set_num_threads(1)
    MODEL = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    PROCESSOR = AutoProcessor.from_pretrained(checkpoint)


def ask_transformers(body: dict) -> tuple[list[int], int]:
    """The tokens of the answer, and the level of an adaptive budget, else 0."""
    import torch

    from mqt_llava import AdaptiveBudget

    messages = [
        {**one, "content": [image_of(item) for item in one["content"]]}
        if isinstance(one["content"], list)
        else {**one, "content": [{"type": "text", "text": one["content"]}]}
        for one in body["messages"]
    ]
    number = body.get("mm_processor_kwargs", {}).get("num_visual_tokens")
    adaptive = isinstance(number, (str, dict))
    kwargs = {} if adaptive or number is None else {"num_visual_tokens": number}
    inputs = PROCESSOR.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs=kwargs,
    )  # fmt: skip
    budget = {"num_visual_tokens": AdaptiveBudget(**number) if isinstance(number, dict) else number}
    with torch.inference_mode():
        output = MODEL.generate(
            **inputs, do_sample=False, max_new_tokens=body["max_tokens"], return_dict_in_generate=True,
            **(budget if adaptive else {}),
        )  # fmt: skip
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, int(output.visual_token_level) if adaptive else 0
