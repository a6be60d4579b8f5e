"""
Requests, and how transformers and vLLM answer them: each in a process of its own, since vLLM changes the classes of
transformers.
"""

import json
import os
import re
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.builders.paths import FIXTURES, REPOSITORY


TINY = REPOSITORY / "model_cards" / "mqt-llava-tiny"  # M is 16
LEGACY_FALSE = FIXTURES / "mqt_llava_original_tiny_legacy_false"  # M is 256
MOSAICS = [REPOSITORY / "examples" / "images" / f"mosaic_{index}.png" for index in range(4)]
QUESTIONS = ["Is there any footwear?", "What is there most of?", "List the items in the top row.", "List the items."]
BUDGETS = [None, 1, 4, 16]
NEW_TOKENS = 24
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # the models are small
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the process that counts its calls
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Case:
    prompt: str
    images: tuple[Path, ...] = ()
    m: int | tuple[int, ...] | None = None
    query: str | tuple[str, ...] | None = None  # of QueCC-LLaVA, instead of the prompt's own questions


@dataclass(frozen=True)
class Answer:
    prompt_ids: list[int]
    ids: list[int]
    text: str = field(compare=False)  # word by word vLLM keeps a leading space
    num_cached: int = field(default=0, compare=False)  # tokens of the prompt whose keys and values vLLM had


def chat(question: str, *images: Path, m: int | None = None) -> Case:
    """A case with the prompt that the chat template makes of it."""
    system = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the human's questions. "
    return Case(f"{system}USER: {('<image>' + chr(10)) * len(images)}{question} ASSISTANT:", images, m)


# Every image, question and number: what 64 clients ask at once.
CHATS = [(image, question, m) for image, question, m in product(MOSAICS, QUESTIONS, BUDGETS)]
TINY_CASES = [
    *(chat(question, image, m=m) for image, question, m in CHATS),
    *(Case("USER: <image>\n<image>\nWhat is there most of? ASSISTANT:", tuple(MOSAICS[:2]), m) for m in BUDGETS),
    *(Case("USER: <image> and <image>\nList the items. ASSISTANT:", (MOSAICS[0],) * 2, m) for m in BUDGETS),
    Case("USER: Is there any footwear? ASSISTANT:"),
    Case("USER: <image>\nIs there a bag? ASSISTANT: yes</s>USER: List the items. ASSISTANT:", (MOSAICS[2],), 4),
    chat("What is there most of?", *MOSAICS[2:], m=(9, 2)),
]
TWO_NUMBERS = len(TINY_CASES) - 1


# What the original code has answered.
GOLDEN_KEYS = [f"q{question}.m{m}" for question in range(3) for m in (1, 16, 256)]


def golden_cases() -> list[Case]:
    """These, several turns, several images, text alone, the default of 256, and another number."""
    golden = json.loads((LEGACY_FALSE / "golden.json").read_text())
    by_key = {case["key"]: case for case in golden["cases"]}
    cases = []
    for case in [*map(by_key.get, GOLDEN_KEYS), golden["multiturn"], golden["twoimages"], golden["textonly"]]:
        names = case.get("images") or [case.get("image")]
        images = tuple(LEGACY_FALSE / "images" / name for name in names if name)
        cases.append(Case(case["prompt"], images, case.get("num_visual_tokens")))
    first = cases[0]
    return [*cases, Case(first.prompt, first.images), Case(first.prompt, first.images, 4)]


def widen_heads(folder: Path, times: int = 2) -> None:
    """
    Makes the decoder's attention heads some times as wide, and leaves all it computes as it is.

    vLLM's attention on a CPU knows no heads of 16 or 24, which the originals have. Rotary embeddings turn channel i of
    16 as fast as channel 2 i of 32; those between stay zero.
    """
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    heads, width = text["num_attention_heads"], text["hidden_size"] // text["num_attention_heads"]
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "language_model" in name and re.search(r"[qkv]_proj", name):
            wide = weight.new_zeros(heads, times * width, weight.shape[1])
            # Scores are divided by the root of the width.
            wide[:, ::times] = weight.unflatten(0, (heads, width)) * (times**0.5 if "q_proj" in name else 1)
            weights[name] = wide.flatten(0, 1)
        elif "language_model" in name and "o_proj" in name:
            wide = weight.new_zeros(len(weight), heads, times * width)
            wide[:, :, ::times] = weight.unflatten(1, (heads, width))
            weights[name] = wide.flatten(1)
    text["head_dim"] = times * width
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def ask_transformers(checkpoint: Path, cases: list[Case]) -> list[Answer]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import mqt_llava  # noqa: F401  (registers the model)

    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    answers = []
    for case in cases:
        inputs = processor(
            images=[Image.open(path) for path in case.images] or None,
            text=case.prompt,
            num_visual_tokens=list(case.m) if isinstance(case.m, tuple) else case.m,
            return_tensors="pt",
            **({} if case.query is None else {"query": case.query}),
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        prompt_ids = inputs["input_ids"][0].tolist()
        ids = output[0, len(prompt_ids) :].tolist()
        answers.append(Answer(prompt_ids, ids, processor.decode(ids, skip_special_tokens=True)))
    return answers


class Engine:
    """vLLM in this process. It lives in a worker of its own, whose functions are those below."""

    def __init__(self, checkpoint: Path, **kwargs):
        from vllm import LLM

        from mqt_llava import MQTLlavaModel, QueCCLlavaModel

        self.encoded = []  # the number of tokens of every image that goes through the encoder
        for model_class in (MQTLlavaModel, QueCCLlavaModel):
            model_class.get_image_features = self.counting(model_class.get_image_features)
        settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, **kwargs}
        self.llm = LLM(str(checkpoint), **settings)
        self.check_reserved_images()
        self.encoded.clear()  # of the images that vLLM reserves memory with

    def counting(self, get_image_features):
        def counted(*args, **kwargs):
            output = get_image_features(*args, **kwargs)
            self.encoded += [len(tokens) for tokens in output.pooler_output]
            return output

        return counted

    @torch.inference_mode()
    def check_reserved_images(self):
        """They are as large as a request may ask for, whatever the default is. On a CPU vLLM does not encode them."""
        from vllm.multimodal import MULTIMODAL_REGISTRY
        from vllm.multimodal.utils import group_and_batch_mm_kwargs

        processor = MULTIMODAL_REGISTRY.create_processor(self.llm.llm_engine.model_config)
        dummy = processor.get_dummy_mm_inputs({"image": 1})
        (placeholder,), (item,) = dummy["mm_placeholders"]["image"], dummy["mm_kwargs"]["image"]
        assert placeholder.length == processor.info.get_hf_processor().max_visual_tokens
        ((_, _, images),) = group_and_batch_mm_kwargs([("image", item)] * 3)
        (embeddings,) = self.llm.apply_model(lambda model: model.embed_multimodal(**images))
        assert [len(tokens) for tokens in embeddings] == [placeholder.length] * 3


ENGINE: Engine | None = None


def start_engine(checkpoint: Path, kwargs: dict) -> None:
    global ENGINE
    os.environ.update(ENVIRONMENT)
    ENGINE = Engine(checkpoint, **kwargs)


def ask_engine(cases: list[Case], kwargs: list[dict] | None = None) -> tuple[list[Answer], list[int]]:
    """All cases in one call, and how many tokens were made of each image that was encoded for it."""
    from vllm import SamplingParams

    prompts = []
    for index, case in enumerate(cases):
        prompt = {"prompt": case.prompt}
        if case.images:
            prompt["multi_modal_data"] = {"image": [Image.open(path) for path in case.images]}
        if case.m is not None:
            prompt["mm_processor_kwargs"] = {"num_visual_tokens": case.m}
        if case.query is not None:
            prompt["mm_processor_kwargs"] = {"query": case.query}
        if kwargs is not None:
            prompt["mm_processor_kwargs"] = kwargs[index]
        prompts.append(prompt)
    ENGINE.encoded.clear()
    outputs = ENGINE.llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    answers = [
        Answer(list(one.prompt_token_ids), list(one.outputs[0].token_ids), one.outputs[0].text, one.num_cached_tokens)
        for one in outputs
    ]
    return answers, list(ENGINE.encoded)
