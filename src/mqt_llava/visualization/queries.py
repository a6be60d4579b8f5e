"""
What each query looks at. Keys hold positions only, so the attention of the query transformer is the same for every
image, and these maps are properties of a checkpoint.
"""

from typing import Any

import torch

from ..models.configuration_compressed_llava import check_num_visual_tokens
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration


@torch.no_grad()
def query_maps(
    model: MQTLlavaForConditionalGeneration, num_visual_tokens: int | None = None, grid: int | None = None
) -> torch.Tensor:
    """
    How much of each patch each head of each query takes.

    Args:
        num_visual_tokens: m, how many queries; all M by default.
        grid: Patches of an image in a row. By default those of the vision tower's own image size.

    Returns:
        `(heads, m, grid, grid)`; each map sums to 1.

    Raises:
        TypeError, ValueError: m is no integer in 1..M.
    """
    config = model.config
    vision: Any = config.vision_config
    m = config.max_visual_tokens if num_visual_tokens is None else num_visual_tokens
    (m,) = check_num_visual_tokens(m, config.max_visual_tokens, num_images=1)
    grid = vision.image_size // vision.patch_size if grid is None else grid
    return model.model.resampler.attention_weights(grid * grid, m).unflatten(-1, (grid, grid))


def coverage(maps: torch.Tensor) -> torch.Tensor:
    """
    How much of the image the first m queries can tell apart, for each m.

    A patch is covered to the largest share that it has in any map of the first m queries: 1 if some head of some query
    reads it alone, little if it is only ever read mixed with others. Coverage is the mean over patches. It never falls
    with m, is 1 / patches where all queries average the whole image, and 1 where every patch is read alone.

    Args:
        maps: From [`query_maps`], `(heads, m, grid, grid)`.

    Returns:
        `(m, grid, grid)`, the coverage of each patch by the first 1, 2, ... m queries; its mean over patches is the
        coverage.
    """
    return maps.amax(0).cummax(0).values
