"""Heatmaps against finite differences in float64, and what they must sum to."""

import sys

import pytest
import torch

from mqt_llava.visualization import METHODS, answer_heatmap, answer_score, visual_token_heatmap


TARGETS = [{}, {"answer_tokens": 1}, {"visual_token": 2}, {"answer_tokens": [0, 2], "visual_token": 0}]
STEP = 1e-3


@torch.no_grad()
def slope(score, patches, direction) -> torch.Tensor:
    """Of a score at each of some images, by central differences of the fourth order."""
    near, far = (score(patches + k * STEP * direction) - score(patches - k * STEP * direction) for k in (1, 2))
    return (8 * near - far) / (12 * STEP)


def grad_cam_slopes(score, patches) -> torch.Tensor:
    """Grad-CAM without a gradient: what it does to the score when each patch's features are shared out to all."""
    slopes = [slope(score, patches, (patches[:, [p]] / 16).expand_as(patches)) for p in range(16)]
    return torch.tensor(slopes, dtype=patches.dtype).view(4, 4)


@pytest.mark.parametrize("m", [3, 16])
@pytest.mark.parametrize("target", TARGETS)
def test_gradients_are_those_of_finite_differences(answer, m, target):
    score, patches = answer_score(answer, m, **target), answer.patches.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(patches).sum(), patches)
    generator = torch.Generator().manual_seed(0)
    for patch in range(16):
        direction = torch.zeros_like(gradient)
        direction[:, patch] = torch.randn(32, dtype=torch.float64, generator=generator)
        expected = slope(score, answer.patches, direction)
        assert abs((gradient * direction).sum() - expected) < 1e-6 * gradient.norm()
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("m", [3, 16])
@pytest.mark.parametrize("target", TARGETS)
def test_grad_cam_of_an_answer(answer, m, target):
    heatmap = answer_heatmap(answer, m, **target, method="grad_cam")
    expected = grad_cam_slopes(answer_score(answer, m, **target), answer.patches)
    torch.testing.assert_close(heatmap, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("visual_token", [0, 15])
def test_grad_cam_of_a_visual_token_is_that_of_its_norm(answer, visual_token):
    heatmap = visual_token_heatmap(answer, visual_token, "grad_cam")
    expected = grad_cam_slopes(
        lambda patches: answer.visual_tokens(patches, 16)[:, visual_token].norm(dim=-1), answer.patches
    )
    torch.testing.assert_close(heatmap, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("target", TARGETS[:1] + TARGETS[-1:])
def test_integrated_gradients_are_the_integral_of_finite_differences(answer, target):
    pytest.importorskip("captum")
    score, difference = answer_score(answer, 4, **target), answer.patches - answer.blank_patches
    heatmap = answer_heatmap(answer, 4, **target, steps=200)
    for patch in (0, 9):
        direction = torch.zeros_like(difference)
        direction[:, patch] = difference[:, patch]
        points = (torch.arange(300, dtype=torch.float64)[:, None, None] + 0.5) / 300
        expected = slope(score, answer.blank_patches + points * difference, direction).mean()
        assert abs(heatmap.flatten()[patch] - expected) < 1e-4 * heatmap.abs().max()


@pytest.mark.parametrize("target", TARGETS)
def test_integrated_gradients_sum_to_what_the_image_changes(answer, target):
    pytest.importorskip("captum")
    score = answer_score(answer, 4, **target)
    change = (score(answer.patches) - score(answer.blank_patches)).item()
    assert abs(answer_heatmap(answer, 4, **target, steps=200).sum().item() - change) < 1e-6 * abs(change)


def test_followed_tokens_share_the_gradient(answer):
    """Through each visual token in turn, the gradients add up to that through all of them."""
    whole = answer_heatmap(answer, 5, method="grad_cam")
    parts = sum(answer_heatmap(answer, 5, visual_token=token, method="grad_cam") for token in range(5))
    torch.testing.assert_close(parts, whole)


def test_the_model_is_left_as_it_was(answer):
    before = answer.patches.clone()
    with torch.no_grad():
        answer_heatmap(answer, 5, method="grad_cam")
    assert all(parameter.grad is None for parameter in answer.model.parameters())
    assert torch.equal(answer.patches, before) and not answer.patches.requires_grad


def test_wrong_targets_are_refused(answer):
    for m in (0, 17):
        with pytest.raises(ValueError, match="1..16"):
            answer_heatmap(answer, m)
    with pytest.raises(TypeError):
        answer_heatmap(answer, 4.0)
    with pytest.raises(ValueError, match=r"of 4 visual tokens it must be in 0\.\.3"):
        answer_heatmap(answer, 4, visual_token=4)
    for token in (-1, 16):
        with pytest.raises(ValueError, match=r"0\.\.15"):
            visual_token_heatmap(answer, token)
    with pytest.raises(TypeError, match="integer"):
        visual_token_heatmap(answer, True)
    for tokens in (3, -1, [0, 3], []):
        with pytest.raises(ValueError, match=r"among 0\.\.2.*'</s>'"):
            answer_heatmap(answer, 4, answer_tokens=tokens)
    with pytest.raises(ValueError, match=", ".join(METHODS)):
        answer_heatmap(answer, 4, method="gradcam")


def test_without_captum_the_error_names_the_extra(answer, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ImportError, match=r"mqt_llava\[visual\]"):
        answer_heatmap(answer, 4)
    answer_heatmap(answer, 4, method="grad_cam")
