"""From the patch grid back to the pixels of an image, as it was before padding, resizing and cropping."""

from typing import Any

import torch
from torch import nn
from transformers import LlavaImageProcessorPil


def seen_box(image_processor: LlavaImageProcessorPil, width: int, height: int) -> tuple[float, float, float, float]:
    """
    The part of an image that the patch grid covers, with the padding around it.

    Args:
        image_processor: A processor's, of the LLaVA kind: pads to a square or not, resizes and crops the centre.
        width, height: Of the image, in pixels.

    Returns:
        Left, top, right and bottom in pixels of the image, also outside of it: a landscape image of 40 x 20 that is
        padded to a square is seen from (0, -10) to (40, 30).

    Raises:
        ValueError: The image has no pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"The image is {width} x {height}: it has no pixels.")
    left, top, right, bottom = 0, 0, width, height
    if image_processor.do_pad:
        side = max(width, height)
        left, top = -((side - width) // 2), -((side - height) // 2)
        right, bottom = left + side, top + side
    columns, rows = right - left, bottom - top  # before resizing
    new_columns, new_rows = columns, rows
    if image_processor.do_resize:
        size: Any = image_processor.size
        if size.shortest_edge:
            short = min(columns, rows)
            new_columns, new_rows = (int(size.shortest_edge * edge / short) for edge in (columns, rows))
        else:
            new_columns, new_rows = size.width, size.height
    if image_processor.do_center_crop:
        crop: Any = image_processor.crop_size
        # Where less is left than the crop wants, it pads; then the box grows.
        first_column, first_row = (new_columns - crop.width) // 2, (new_rows - crop.height) // 2
        x, y = columns / new_columns, rows / new_rows
        left, right = left + first_column * x, left + (first_column + crop.width) * x
        top, bottom = top + first_row * y, top + (first_row + crop.height) * y
    return float(left), float(top), float(right), float(bottom)


def heat_over_image(
    heatmap: torch.Tensor, image_processor: LlavaImageProcessorPil, width: int, height: int, smooth: bool = True
) -> torch.Tensor:
    """
    A heatmap over the patch grid as one over the pixels of an image.

    Args:
        heatmap: `(grid, grid)`.
        image_processor: The one that turned the image into `pixel_values`.
        width, height: Of the image, in pixels.
        smooth: Bilinear between the centres of patches; otherwise every pixel has the number of its patch.

    Returns:
        `(height, width)`. Pixels that the model has not seen, since they were cropped away, are 0.
    """
    left, top, right, bottom = seen_box(image_processor, width, height)
    heatmap = heatmap.detach().cpu().to(torch.promote_types(heatmap.dtype, torch.float32))
    # Centres of pixels, where the box goes from -1 to 1.
    x = (torch.arange(width, dtype=heatmap.dtype) + 0.5 - left) / (right - left) * 2 - 1
    y = (torch.arange(height, dtype=heatmap.dtype) + 0.5 - top) / (bottom - top) * 2 - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    heat = nn.functional.grid_sample(
        heatmap[None, None],
        places[None],
        mode="bilinear" if smooth else "nearest",
        padding_mode="border",
        align_corners=False,
    )[0, 0]
    return heat * (places.abs() <= 1).all(-1)
