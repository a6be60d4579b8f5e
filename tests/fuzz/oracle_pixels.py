"""What a picture looks like to the model: the square, the size and the normalisation by the original's rule."""

import numpy as np
import PIL.Image
import torch


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixels(colours: np.ndarray, size: int) -> torch.Tensor:
    """
    Args:
        colours: `(height, width, 3)`, 0..255.
        size: Side of what the vision tower reads.

    Returns:
        `(3, size, size)`.
    """
    height, width, _ = colours.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(mean * 255) for mean in MEAN]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = colours
    resized = PIL.Image.fromarray(square).resize((size, size), PIL.Image.Resampling.BICUBIC)
    return torch.tensor((np.asarray(resized) / 255 - MEAN) / STD).permute(2, 0, 1).float()
