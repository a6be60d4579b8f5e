"""Random prompts and chats, with what they mean beside them."""

from random import Random
from typing import Any, NamedTuple

from .oracle_text import IMAGE


WORDS = (
    "What",
    "is",
    "here?",
    "a",
    "red",
    "shoe",
    "List the items.",
    "Ünïcode ☃",
    "</s>",
    "  ",
    "1 2 3",
    "x\ny",
    "USER:",
)


class Prompt(NamedTuple):
    text: str
    num_images: int
    questions: list[str]  # for QueCC, one per image


def words(rng: Random, low: int = 1, high: int = 4, plain: bool = False) -> str:
    return " ".join(rng.choice(WORDS[: 7 if plain else None]) for _ in range(rng.randint(low, high)))


def random_prompt(rng: Random, is_asked: bool = False) -> Prompt:
    """Images anywhere, or, where each must be asked about, in front of their questions, turn by turn."""
    if not is_asked:
        pieces = [words(rng, 0)]
        num_images = rng.choice((0, 1, 1, 1, 2, 2, 3))
        for _ in range(num_images):
            pieces += [IMAGE, rng.choice(("\n", " ", "", "", words(rng)))]
        return Prompt(rng.choice(("", "\n", " ")).join(pieces) or "nothing", num_images, [])
    text, questions = "", []
    for turn in range(rng.randint(1, 2)):
        question, number = words(rng, plain=True), rng.choice((0, 1, 1, 2))
        text += f"USER: {f'{IMAGE}{chr(10)}' * number}{question} ASSISTANT:"
        questions += [question.strip()] * number
        if turn == 0 and rng.random() < 0.5:
            text += f" {words(rng, plain=True)}</s>"
    return Prompt(text, len(questions), questions)


class Chat(NamedTuple):
    messages: list[dict]
    numbers: list[Any]  # per image, what its content item asks for, or None
    questions: list[str]


def random_chat(rng: Random, images: list[dict], number: Any, last: str = "user") -> Chat:
    """
    Args:
        images: Of the content items, without a type.
        number: A function that draws what an item asks for, or None.
        last: Who speaks last.
    """
    messages, numbers, questions, left = [], [], [], list(images)
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": words(rng, plain=True)})
    num_turns = rng.randint(1, 2)
    for turn in range(num_turns):
        content, here = [], left if turn == num_turns - 1 else left[: rng.randint(0, len(left))]
        left = left[len(here) :]
        for image in here:
            item = {"type": "image", **image}
            numbers.append(number())
            if numbers[-1] is not None:
                item["num_visual_tokens"] = numbers[-1]
            content.append(item)
        question = words(rng, plain=True) + rng.choice(("", "", f" {IMAGE}"))
        content.insert(rng.randint(0, len(content)), {"type": "text", "text": question})
        questions += [question.replace(IMAGE, "< image>").strip()] * len(here)
        is_text = not here and rng.random() < 0.5
        messages.append({"role": "user", "content": question if is_text else content})
        if turn < num_turns - 1 or last == "assistant":
            messages.append({"role": "assistant", "content": words(rng, plain=True)})
    return Chat(messages, numbers, questions)
