"""Pictures of noise, and what the original code makes of a picture."""

import io

import numpy as np
import torch
from PIL import Image


def make_image(width: int = 30, height: int = 20, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def reference_pixels(image: Image.Image, size: int = 336) -> torch.Tensor:
    """By Pillow and NumPy alone."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)) / 255
    return torch.tensor((pixels - mean) / std).permute(2, 0, 1).float()
