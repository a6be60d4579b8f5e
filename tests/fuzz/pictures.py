"""Random pictures in all the modes of Pillow and in all the forms of callers, with their true colours."""

import base64
import io
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch


SIDES = (2, 5, 6, 9, 17, 30, 41)  # no channel's number among them, for arrays
FREE_SIDES = (1, 3, 4, *SIDES)


class Picture(NamedTuple):
    image: PIL.Image.Image
    colours: np.ndarray  # `(height, width, 3)`: what it shows, with any transparency taken away
    kind: str


@cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def random_picture(rng: Random, sides: tuple[int, ...] = FREE_SIDES, kinds: tuple[str, ...] = ()) -> Picture:
    width, height = rng.choice(sides), rng.choice(sides)
    numbers = np.random.default_rng(rng.randrange(2**32))
    kind = rng.choice(kinds or tuple(KINDS))
    image, colours = KINDS[kind](numbers, height, width)
    return Picture(image, colours, kind)


def noise(numbers, *shape: int) -> np.ndarray:
    return numbers.integers(0, 256, shape, dtype=np.uint8)


def rgb(numbers, height, width):
    colours = noise(numbers, height, width, 3)
    return PIL.Image.fromarray(colours), colours


def rgb_transparent(numbers, height, width):
    image, colours = rgb(numbers, height, width)
    image.info["transparency"] = tuple(int(value) for value in colours[0, 0])
    return image, colours


def rgba(numbers, height, width):
    values = noise(numbers, height, width, 4)
    return PIL.Image.fromarray(values), values[..., :3]


def luminance(numbers, height, width):
    values = noise(numbers, height, width)
    return PIL.Image.fromarray(values), grey(values)


def luminance_transparent(numbers, height, width):
    image, colours = luminance(numbers, height, width)
    image.info["transparency"] = int(colours[0, 0, 0])
    return image, colours


def luminance_alpha(numbers, height, width):
    values = noise(numbers, height, width, 2)
    return PIL.Image.fromarray(values), grey(values[..., 0])


def palette(numbers, height, width):
    table, indices = noise(numbers, 256, 3), noise(numbers, height, width)
    image = PIL.Image.frombytes("P", (width, height), indices.tobytes())
    image.putpalette(table.tobytes())
    return image, table[indices]


def palette_transparent(numbers, height, width):
    image, colours = palette(numbers, height, width)
    index = image.getpixel((0, 0))
    image.info["transparency"] = index if numbers.integers(2) else noise(numbers, 256).tobytes()
    return image, colours


def bilevel(numbers, height, width):
    values = noise(numbers, height, width) > 127
    return PIL.Image.fromarray(values), grey(values * np.uint8(255))


def by_pillow(mode: str):
    """Modes whose way to RGB is a convention of Pillow's, which the original follows."""

    def make(numbers, height, width):
        if mode.startswith("I;16"):
            image = PIL.Image.fromarray(numbers.integers(0, 2**16, (height, width), dtype=np.uint16))
        elif mode == "I":
            image = PIL.Image.fromarray(numbers.integers(-9, 400, (height, width), dtype=np.int32))
        elif mode == "F":
            image = PIL.Image.fromarray(numbers.random((height, width), dtype=np.float32) * 300)
        else:
            bands = noise(numbers, height, width, len(PIL.Image.new(mode, (1, 1)).getbands()))
            image = PIL.Image.frombytes(mode, (width, height), bands.tobytes())
        return image, np.asarray(image.convert("RGB"))

    return make


KINDS = {
    "RGB": rgb,
    "RGB with a transparent colour": rgb_transparent,
    "RGBA": rgba,
    "L": luminance,
    "L with a transparent grey": luminance_transparent,
    "LA": luminance_alpha,
    "P": palette,
    "P with transparency": palette_transparent,
    "1": bilevel,
    **{mode: by_pillow(mode) for mode in ("I;16", "I", "F", "CMYK", "YCbCr", "HSV")},
}
PLAIN = ("RGB", "RGBA", "L")  # which arrays can hold
IN_PNG = ("RGB", "RGB with a transparent colour", "RGBA", "L", "L with a transparent grey", "LA", "P",
          "P with transparency", "1", "I;16")  # fmt: skip


def in_any_form(rng: Random, index: int) -> tuple[Any, np.ndarray, str]:
    """A picture as a caller may pass it, its colours, and what it is."""
    form = rng.choice(("PIL", "PIL", "PIL", "file", "file", "path", "base64", "array", "tensor"))
    if form == "PIL":
        picture = random_picture(rng)
        return picture.image, picture.colours, f"{picture.kind} as PIL"
    if form in ("array", "tensor"):
        picture = random_picture(rng, SIDES, PLAIN)
        values = np.asarray(picture.image)
        layout = rng.choice(("last", "first")) if values.ndim == 3 else rng.choice(("none", "last", "first"))
        if layout != "none" and values.ndim == 2:
            values = values[..., None]
        if layout == "first":
            values = values.transpose(2, 0, 1)
        values = values.astype(rng.choice((np.uint8, np.uint8, np.int16, np.int32, np.int64)))
        passed = torch.from_numpy(values.copy()) if form == "tensor" else values
        return passed, picture.colours, f"{picture.kind} as {form} of {values.dtype}, channels {layout}"
    picture = random_picture(rng, FREE_SIDES, IN_PNG)
    suffix = "tiff" if picture.kind == "I;16" and rng.random() < 0.5 else "png"
    if form == "base64":
        buffer = io.BytesIO()
        picture.image.save(buffer, suffix)
        text = base64.b64encode(buffer.getvalue()).decode()
        return rng.choice((text, f"data:image/{suffix};base64,{text}")), picture.colours, f"{picture.kind} as base64"
    path = Path(folder().name) / f"{index}.{suffix}"
    picture.image.save(path)
    return path if form == "path" else str(path), picture.colours, f"{picture.kind} as {suffix} by its {form}"


def no_picture(rng: Random) -> Any:
    """What is refused."""
    broken = Path(folder().name) / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    text = Path(folder().name) / "text.png"
    text.write_text("no image")
    return rng.choice(
        [
            7,
            b"bytes",
            {"image": "what"},
            object(),
            "",
            "no such file.png",
            str(broken),
            text,
            np.zeros((5, 5, 2), np.uint8),
            np.zeros((0, 5, 3), np.uint8),
            np.zeros(5, np.uint8),
            np.full((5, 5, 3), 256),
            np.full((5, 5, 3), -1),
            np.zeros((5, 5, 3), np.float32),
            np.zeros((5, 5), bool),
            np.zeros((5, 5, 3), complex),
            np.array(["a", "b"]),
            np.array(3),
            torch.rand(3, 5, 5),
            torch.zeros(3, 5, 5, dtype=torch.uint8).to_sparse(),
            torch.zeros(3, 5, 5, dtype=torch.uint8, device="meta"),
            PIL.Image.new("RGB", (0, 4)),
        ]
    )
