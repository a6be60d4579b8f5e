"""Where an answer comes from, as the web demo shows it: the picture once for each part of the answer."""

from collections.abc import Callable, Iterable

import torch
from PIL import Image, ImageOps

from mqt_llava import visualization as visual
from mqt_llava.visualization.figures import glow


SIDE = 240  # pixels of a picture
MAX_PARTS = 16
ENDS = ",.;:!?"  # of a part


def answer_parts(tokens: list[str]) -> list[list[int]]:
    """
    What stands between commas and full stops, such as the items of a list.

    Args:
        tokens: Of the answer, "" where one is no text.

    Returns:
        The indices of each part's tokens.
    """
    parts: list[list[int]] = [[]]
    for index, token in enumerate(tokens):
        if token and not token.strip(ENDS):
            parts.append([])
        elif token:
            parts[-1].append(index)
    return [part for part in parts if part][:MAX_PARTS]


def draw_heat(image: Image.Image, heat: torch.Tensor, highest: float) -> Image.Image:
    """
    Heat over a grey picture, in the colours of the package's figures.

    Args:
        heat: `(height, width)` of the picture's pixels. Only what is positive is shown.
        highest: What the strongest colour stands for.
    """
    share = (heat.clamp(min=0) / highest).numpy()
    grey = image.convert("L").point(lambda value: 0.7 * value).convert("RGBA")
    return Image.alpha_composite(grey, Image.fromarray(glow()(share, bytes=True))).convert("RGB")


def draw_answer(
    model,
    processor,
    image: Image.Image,
    question: str,
    answer: str,
    num_visual_tokens: int,
    track: Callable[[list], Iterable] = iter,
) -> list[tuple[str, Image.Image]]:
    """
    Args:
        answer: What the model says at this number of visual tokens.
        track: Shows how far it is, as tqdm does.

    Returns:
        Each part of the answer with the picture, bright where the part comes from; on one scale.

    Raises:
        ImportError: `pip install "mqt_llava[visual]"` is missing.
        ValueError: The answer is empty.
    """
    if not answer.strip():
        raise ValueError("The model gave no answer that could be explained.")
    explained = visual.ImageAnswer.ask(model, processor, image, question, answer)
    decode = processor.tokenizer.decode
    parts = answer_parts([decode(token, skip_special_tokens=True).strip() for token in explained.answer_ids])
    shown = ImageOps.contain(image, (SIDE, SIDE))
    heats = []
    for part in track(parts):
        heatmap = visual.answer_heatmap(explained, num_visual_tokens, part)
        heats.append(visual.heat_over_image(heatmap, processor.image_processor, *shown.size))
    highest = max([float(heat.max()) for heat in heats] + [torch.finfo(torch.float32).tiny])
    names = [decode(explained.answer_ids[part]).strip() for part in parts]
    return [(name, draw_heat(shown, heat, highest)) for name, heat in zip(names, heats)]
