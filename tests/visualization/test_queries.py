"""Query maps and coverage."""

import pytest
import torch

from mqt_llava.visualization import coverage, query_maps
from tests.builders.models import random_model
from tests.builders.prompts import random_pixels


def test_maps_are_what_queries_take_from_patches():
    """A visual token follows from its maps and the patches, whatever the image."""
    model = random_model()
    maps, resampler = query_maps(model, 6), model.model.resampler
    assert maps.shape == (16, 6, 4, 4)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(16, 6))
    with torch.no_grad():
        patches = model.model.encode_patches(random_pixels(1))[1][0]
        values = resampler.v_proj(resampler.ln_v(patches))[0].unflatten(-1, (16, -1))
        context = torch.einsum("hqp,phd->qhd", maps.flatten(2), values).flatten(1)
        expected = resampler(patches, num_visual_tokens=6)[0]
    torch.testing.assert_close(resampler.proj(resampler.out_proj(context)).detach(), expected)


def test_maps_of_other_grids_and_numbers():
    model = random_model()
    assert query_maps(model).shape == (16, 16, 4, 4)
    assert query_maps(model, 2, grid=7).shape == (16, 2, 7, 7)
    with pytest.raises(ValueError, match="1..16"):
        query_maps(model, 17)


def test_coverage_of_known_maps():
    alone = torch.eye(16).view(1, 16, 4, 4)  # query i reads patch i alone
    torch.testing.assert_close(coverage(alone).mean((1, 2)), torch.arange(1, 17) / 16)
    even = torch.full((2, 5, 4, 4), 1 / 16)
    torch.testing.assert_close(coverage(even).mean((1, 2)), torch.full((5,), 1 / 16))
    heads = torch.stack([alone[0], alone[0].flip(0)])  # two heads cover twice as much until they meet
    torch.testing.assert_close(coverage(heads).mean((1, 2)), (torch.arange(1, 17) / 8).clamp(max=1))


def test_coverage_never_falls():
    covered = coverage(query_maps(random_model()))
    assert (covered.diff(dim=0) >= 0).all() and covered.max() <= 1
