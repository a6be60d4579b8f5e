"""Images that are none, cannot be read or do not fit are an error that names the image and what was wrong with it."""

import base64
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.builders.chats import PROMPT, raises


IMAGE = Image.new("RGB", (30, 20), "red")
PNG = b"\x89PNG\r\n\x1a\n"


def png_that_claims(width: int, height: int) -> bytes:
    """A file of a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


BAD_FILES = {
    "empty": b"",
    "no image": b"Hello",
    "truncated": png_that_claims(30, 20)[:50],
    "corrupt": png_that_claims(30, 20).replace(b"IDAT", b"IDAT\xff"),
    "cut in its data": png_that_claims(300, 200),
    "decompression bomb": png_that_claims(60_000, 60_000),
    "long strip": png_that_claims(60_000, 1),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("source", ["path", "base64"])
def test_file_that_cannot_be_read(processor, tmp_path, name, source):
    path = tmp_path / "image.png"
    path.write_bytes(BAD_FILES[name])
    given = str(path) if source == "path" else "data:image/png;base64," + base64.b64encode(BAD_FILES[name]).decode()
    with raises(ValueError, "images[1]"):
        processor(images=[IMAGE, given], text=PROMPT * 2, num_visual_tokens=1)


def test_truncated_image_that_was_opened_by_the_user(processor, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(BAD_FILES["cut in its data"])
    with raises(ValueError, "images[0] cannot be read", "truncated"):
        processor(images=Image.open(path), text=PROMPT)


def test_decompression_bomb_says_how_large_it_is(processor, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(BAD_FILES["decompression bomb"])
    with raises(ValueError, "images[0]", "3600000000 pixels", "exceeds limit"):
        processor(images=path, text=PROMPT)


@pytest.mark.parametrize(
    "image, size",
    [
        (Image.new("RGB", (60_000, 1)), "60000 x 1"),
        (Image.new("L", (1, 60_000)), "1 x 60000"),
        (np.zeros((60_000, 1), np.uint8), "1 x 60000"),
        (np.zeros((2, 60_000, 3), np.uint8), "60000 x 2"),
        (torch.zeros(3, 2, 60_000, dtype=torch.uint8), "60000 x 2"),
    ],
    ids=["PIL", "PIL gray", "gray array", "array", "tensor"],
)
def test_strip_whose_square_would_not_fit_into_memory(processor, image, size):
    with raises(ValueError, f"images[0] is {size}", "padded to a square it exceeds 178956970 pixels", "Scale it down"):
        processor(images=image, text=PROMPT)


def test_users_own_limit_of_pixels_is_kept(processor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with raises(ValueError, "images[0] is 30 x 20", "800 pixels"):
        processor(images=IMAGE, text=PROMPT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    processor(images=IMAGE, text=PROMPT, num_visual_tokens=1)


@pytest.mark.parametrize(
    "image, size",
    [
        (Image.new("RGB", (0, 5)), "0 x 5"),
        (Image.new("RGB", (5, 0)), "5 x 0"),
        (np.zeros((0, 5, 3), np.uint8), "5 x 0"),
        (torch.zeros(3, 5, 0, dtype=torch.uint8), "0 x 5"),
    ],
)
def test_image_without_pixels(processor, image, size):
    with raises(ValueError, f"images[0] is {size}: it has no pixels"):
        processor(images=image, text=PROMPT)


@pytest.mark.parametrize("image", [None, 3, b"bytes", {"url": "x"}, {1}], ids=repr)
def test_image_of_another_type(processor, image):
    with raises(
        TypeError, f"images[1] is a {type(image).__name__}", "must be a PIL image, an array, a tensor, a path"
    ):
        processor(images=[IMAGE, image], text=PROMPT * 2)


@pytest.mark.parametrize("image", ["no_such_file.png", "", "ftp://example.com/a.png", "a\0b.png"], ids=repr)
def test_image_that_is_nowhere(processor, image):
    with raises(ValueError, "images[0] cannot be read", "valid URL", "valid path", f"Got {image}"):
        processor(images=image, text=PROMPT)


@pytest.mark.parametrize("shape", [(), (3,), (20, 30, 2), (20, 30, 5), (1, 1, 20, 30, 3)], ids=str)
def test_array_that_is_no_image(processor, shape):
    with raises(ValueError, f"images[0] is an array of shape {shape}", "1, 3 or 4 channels first or last"):
        processor(images=np.zeros(shape, np.uint8), text=PROMPT)


@pytest.mark.parametrize("shape", [(3, 5, 5), (5, 5)], ids=str)
def test_sparse_tensor(processor, shape):
    with raises(TypeError, "images[0] is a tensor of layout torch.sparse_coo, but must be dense"):
        processor(images=torch.zeros(shape, dtype=torch.uint8).to_sparse())


@pytest.mark.parametrize(
    "image",
    [
        np.full((20, 30, 3), 0.5),
        np.full((20, 30, 3), 0.5, np.float32),
        np.full((20, 30, 3), np.nan),
        np.ones((20, 30, 3), bool),
        np.full((20, 30, 3), 256),
        np.full((20, 30, 3), -1),
        torch.rand(3, 20, 30),
        torch.rand(3, 20, 30, dtype=torch.bfloat16),
        torch.rand(3, 20, 30, requires_grad=True),
    ],
    ids=lambda image: f"{type(image).__name__} {image.dtype}",
)
def test_array_of_other_values_than_0_to_255(processor, image):
    with raises(ValueError, f"images[0] is an array of shape {tuple(image.shape)} and type {image.dtype}", "0..255"):
        processor(images=image, text=PROMPT)
