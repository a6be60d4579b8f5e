"""Padding, resizing and cropping are undone to the pixel: against what the image processor makes of painted images."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from mqt_llava.visualization import heat_over_image, seen_box


GRID, SIDE = 4, 16  # patches of 4 x 4 pixels
PADDED = {"do_pad": True}
CROPPED = {"do_pad": False}


def image_processor(resized=SIDE, cropped=SIDE, **settings) -> LlavaImageProcessorPil:
    return LlavaImageProcessorPil(
        size={"shortest_edge": resized}, crop_size={"height": cropped, "width": cropped}, **settings
    )


@pytest.mark.parametrize(
    ("width", "height", "settings"),
    [
        (64, 32, PADDED), (32, 64, PADDED), (64, 64, PADDED), (64, 18, PADDED), (64, 27, PADDED), (27, 64, PADDED),
        (48, 17, PADDED), (17, 48, PADDED), (16, 9, PADDED), (64, 32, CROPPED), (32, 80, CROPPED),
        (64, 48, {"do_pad": True, "resized": 32}), (80, 160, {"do_pad": False, "resized": 20}),
    ],
)  # fmt: skip
def test_each_pixel_has_the_number_of_the_patch_that_sees_it(width, height, settings):
    """
    Every patch in turn is painted white where the heatmap says that it is: it must turn out all white, and the others
    all black. The sizes are such that patches end where pixels do, and resizing takes whole pixels.
    """
    processor = image_processor(**settings)
    settings = {"do_normalize": False, "return_tensors": "np", "resample": Image.Resampling.BOX}
    painted = 0
    for patch in range(GRID * GRID):
        heatmap = torch.zeros(GRID * GRID)
        heatmap[patch] = 1.0
        heat = heat_over_image(heatmap.view(GRID, GRID), processor, width, height, smooth=False).numpy()
        assert heat.shape == (height, width) and set(np.unique(heat)) <= {0, 1}
        image = Image.fromarray((255 * heat).astype(np.uint8)).convert("RGB")
        white = processor(image, **settings, image_mean=[0.0] * 3)["pixel_values"][0, 0]
        # Padding is of the mean colour, so what is padding is told from what is image by another mean.
        whites = processor(image, **settings, image_mean=[1.0] * 3)["pixel_values"][0, 0]
        is_image = white == whites
        expected = np.zeros((GRID, SIDE // GRID, GRID, SIDE // GRID))
        expected[patch // GRID, :, patch % GRID] = 1
        expected = expected.reshape(SIDE, SIDE)
        np.testing.assert_allclose(white[is_image], expected[is_image], atol=1e-6)
        painted += heat.sum()
    left, top, right, bottom = seen_box(processor, width, height)
    seen_columns, seen_rows = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    assert painted == seen_columns * seen_rows  # every pixel that is seen, once


def test_the_box_of_a_padded_image():
    assert seen_box(image_processor(**PADDED), 40, 20) == (0, -10, 40, 30)
    assert seen_box(image_processor(**PADDED), 20, 41) == (-10, 0, 31, 41)  # the odd pixel is on the right
    assert seen_box(image_processor(**CROPPED), 40, 20) == (10, 0, 30, 20)
    assert seen_box(image_processor(32, 16, **PADDED), 40, 40) == (10, 10, 30, 30)
    with pytest.raises(ValueError, match="no pixels"):
        seen_box(image_processor(**PADDED), 0, 5)


def test_smooth_heat_is_exact_at_the_centres_of_patches_and_between_them():
    heatmap = torch.arange(16.0).view(4, 4)
    heat = heat_over_image(heatmap, image_processor(**PADDED), 12, 12)  # 3 x 3 pixels for a patch
    torch.testing.assert_close(heat[1::3, 1::3], heatmap)
    torch.testing.assert_close(heat[1, 1:5], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert heat.min() == 0 and heat.max() == 15
