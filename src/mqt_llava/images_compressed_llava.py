# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Images in all the forms that transformers users pass them in, as RGB images; what is no image is refused by name."""

import base64
import io
import os
import warnings
from contextlib import contextmanager
from typing import Any

import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, load_image
from transformers.utils import is_numpy_array


def is_array(image: Any) -> bool:
    return isinstance(image, torch.Tensor) or is_numpy_array(image)


def flatten_images(images: Any) -> list:
    """One image, a list, or a list of lists (images prompt by prompt), as a flat list in the same order."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten_images(item)]
    if is_array(images) and images.ndim == 4:
        return list(images)
    return [images]


def load_rgb(image: Any, index: int, data_format: str | None = None) -> PIL.Image.Image:
    """
    Reads one image in RGB, see [`to_rgb`].

    Args:
        image: A PIL image, a path, a URL, base64, or an array or tensor of integers in 0..255, `(height, width)` or
            with 1, 3 or 4 channels first or last.
        index: Its place among the images, for errors and warnings.
        data_format: `"channels_first"` or `"channels_last"` for arrays whose shape leaves it open.

    Raises:
        TypeError: It is none of these.
        ValueError: It cannot be decoded, has no pixels, or would not fit into memory once it is padded to a square.
    """
    if is_array(image):
        image = array_to_image(image, index, data_format)
    elif isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, str):
        with naming_image(index):
            image = open_image(image)
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(
            f"images[{index}] is a {type(image).__name__}, "
            "but must be a PIL image, an array, a tensor, a path or a URL."
        )
    check_image_size(*image.size, index)
    return to_rgb(image, index)


def open_image(source: str) -> PIL.Image.Image:
    """
    As transformers' `load_image`, but with the pixels that the file holds: in RGB nobody can tell what deep ones have
    lost. Only what is behind a URL comes in RGB.
    """
    if source.startswith(("http://", "https://")):
        return load_image(source)
    if os.path.isfile(source):
        return PIL.ImageOps.exif_transpose(PIL.Image.open(source))
    try:
        data = source.partition(",")[2] if source.startswith("data:image/") else source
        return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(base64.decodebytes(data.encode()))))
    except Exception as error:
        raise ValueError(f"it must be a valid URL, a valid path, or an image in base64. Got {source}") from error


def to_rgb(image: PIL.Image.Image, index: int) -> PIL.Image.Image:
    """
    What the original code makes of an image: what is transparent shows the pixels beneath, where transformers would
    show white, and of deep pixels no more than 0..255 are told apart, with a warning.
    """
    with naming_image(index):
        rgb = image.convert("RGB")
        # The colour that files without an alpha channel mark as transparent outlives the conversion.
        rgb.info.pop("transparency", None)
        if image.mode == "F" or image.mode.startswith("I"):
            low, high = image.getextrema()
            if not 0 <= low <= high <= 255 or (image.mode == "F" and high <= 1):
                warnings.warn(
                    f"images[{index}] has values from {low} to {high} (mode {image.mode}), of which the model sees "
                    "integers in 0..255 only: what is above is white. Scale it to 8 bits first.",
                    stacklevel=2,
                )
    return rgb


@contextmanager
def naming_image(index: int):
    """Whatever goes wrong in here, says which image it was. Corrupt files make decoders raise anything."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"images[{index}] cannot be read: {str(error)[:500]}") from error


def array_to_image(image: Any, index: int, data_format: str | None) -> PIL.Image.Image:
    name = f"images[{index}] is an array of shape {tuple(image.shape)} and type {image.dtype}"
    if isinstance(image, torch.Tensor) and image.layout != torch.strided:
        raise TypeError(
            f"images[{index}] is a tensor of layout {image.layout}, but must be dense: pass `.to_dense()`."
        )
    with naming_image(index):
        # The copy is for read-only arrays and for those that count backwards, as BGR turned into RGB does.
        pixels = image.detach().cpu() if isinstance(image, torch.Tensor) else torch.from_numpy(image.copy())
    if pixels.ndim == 3 and data_format is None and {pixels.shape[0], pixels.shape[-1]} & {1, 3, 4}:
        data_format = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and data_format == ChannelDimension.FIRST:
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name}, but must be (height, width), or have 1, 3 or 4 channels first or last.")
    check_image_size(pixels.shape[1], pixels.shape[0], index)
    is_integer = not (pixels.is_floating_point() or pixels.is_complex() or pixels.dtype == torch.bool)
    if not is_integer or pixels.long().min() < 0 or pixels.long().max() > 255:
        # Floats could mean 0..1 or 0..255, and the wrong guess is a black image.
        raise ValueError(f"{name}, but must hold integers in 0..255.")
    pixels = pixels[..., :3].to(torch.uint8).numpy()
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def check_image_size(width: int, height: int, index: int) -> None:
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if width == 0 or height == 0:
        raise ValueError(f"images[{index}] is {width} x {height}: it has no pixels.")
    # The limit at which PIL refuses a file, here for the square: a long thin image is small until it is padded.
    if limit is not None and max(width, height) ** 2 > 2 * limit:
        raise ValueError(
            f"images[{index}] is {width} x {height}; padded to a square it exceeds {2 * limit} pixels "
            "(twice `PIL.Image.MAX_IMAGE_PIXELS`). Scale it down first."
        )
