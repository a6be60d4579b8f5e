"""Random prompts and chats, with what they mean beside them."""

from random import Random
from typing import NamedTuple

from .oracle_text import IMAGE


PLAIN = ("What", "is", "here?", "a", "red", "shoe", "List the items.")
WORDS = (*PLAIN, "Ünïcode ☃", "</s>", "  ", "1 2 3", "x\ny", "USER:")


class Prompt(NamedTuple):
    text: str
    num_images: int
    questions: list[str]  # for QueCC, one per image


def words(rng: Random, low: int = 1, high: int = 4, plain: bool = False) -> str:
    return " ".join(rng.choice(PLAIN if plain else WORDS) for _ in range(rng.randint(low, high)))


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
    numbers: list[int | None]  # per image, what its content item asks for, or None
    questions: list[str]


def random_chat(rng: Random, images: list[dict], most: int | None) -> Chat:
    """
    Args:
        images: Of the content items, without a type.
        most: Greatest number of visual tokens that an item may ask for; None where none does.
    """
    messages, numbers, questions, left = [], [], [], list(images)
    if rng.random() < 0.2:
        messages.append({"role": "system", "content": words(rng, plain=True)})
    num_turns = rng.randint(1, 2)
    for turn in range(num_turns):
        content, here = [], left if turn == num_turns - 1 else left[: rng.randint(0, len(left))]
        left = left[len(here) :]
        for image in here:
            number = rng.randint(1, most) if most is not None and rng.random() < 0.7 else None
            numbers.append(number)
            content.append({"type": "image", **image, **({} if number is None else {"num_visual_tokens": number})})
        question = words(rng, plain=True) + rng.choice(("", "", f" {IMAGE}"))
        content.insert(rng.randint(0, len(content)), {"type": "text", "text": question})
        questions += [question.replace(IMAGE, "< image>").strip()] * len(here)
        is_text = not here and rng.random() < 0.5
        messages.append({"role": "user", "content": question if is_text else content})
        if turn < num_turns - 1:
            messages.append({"role": "assistant", "content": words(rng, plain=True)})
    return Chat(messages, numbers, questions)
