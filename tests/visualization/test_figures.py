"""Figures show what they are given, and pyplot knows nothing of them."""

import io
import sys

import pytest
import torch
from PIL import Image

from mqt_llava.visualization import draw_changes, draw_coverage, draw_heatmaps, draw_queries


pytest.importorskip("matplotlib")
MAPS = torch.rand(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))


def pixels_across(figure) -> int:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return Image.open(buffer).size[0]


def test_heatmaps_are_laid_over_the_image():
    image, heat = Image.new("RGB", (30, 20), "white"), torch.ones(20, 30)
    figure = draw_heatmaps(image, [[heat, 2 * heat], [None, -heat]], ["one", "two"], ["m = 1", "m = 4"], "What?")
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 4 and len(panels[0].images) == 1 and all(len(axis.images) == 2 for axis in panels[1:])
    shown = [axis.images[1] for axis in panels[1:]]
    assert [float(picture.get_array().max()) for picture in shown] == [1, 2, 0]
    assert {picture.get_clim() for picture in shown} == {(0, 2)}  # one scale
    assert [axis.get_title() for axis in panels[1:3]] == ["m = 1", "m = 4"]
    assert {text.get_text() for axis in panels for text in axis.texts} == {"one"}  # "two" has no first panel
    assert shown[0].cmap(0.0)[3] == 0  # nothing covers the image where there is no heat
    assert pixels_across(figure) == 900


def test_heatmaps_without_any_heat_can_be_drawn():
    assert pixels_across(draw_heatmaps(Image.new("RGB", (5, 9)), [[torch.zeros(9, 5)]], ["a"], ["b"])) == 900


def test_heatmaps_that_do_not_fit_are_refused():
    image, heat = Image.new("RGB", (30, 20)), torch.zeros(20, 30)
    with pytest.raises(ValueError, match="20, 30"):
        draw_heatmaps(image, [[heat.T]], ["a"], ["b"])
    with pytest.raises(ValueError, match="row titles"):
        draw_heatmaps(image, [[heat]], ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="column titles"):
        draw_heatmaps(image, [[heat, heat]], ["a"], ["b"])
    with pytest.raises(ValueError, match="heatmaps"):
        draw_heatmaps(image, [[None]], ["a"], ["b"])


def test_queries_have_a_row_each():
    figure = draw_queries(MAPS[:, :5])
    picture = torch.tensor(figure.axes[0].images[0].get_array().filled())
    assert picture.shape == (5 * 5, 4 * 5) and pixels_across(figure) == 900
    torch.testing.assert_close(picture[5:9, :4], MAPS[:, 1].mean(0))
    torch.testing.assert_close(picture[5:9, 10:14], MAPS[1, 1])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["mean", "head 0", "head 1", "head 2"]


def test_coverage_is_a_curve_over_all_queries():
    figure = draw_coverage(MAPS, [1, 4, 16])
    (line,) = [line for axis in figure.axes for line in axis.lines]
    assert [label.get_text() for label in line.axes.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    assert list(line.get_xdata()) == list(range(1, 17)) and pixels_across(figure) == 900
    with pytest.raises(ValueError, match="1..16"):
        draw_coverage(MAPS, [17])


def test_changes_name_tokens_before_and_after():
    probabilities = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.5, 0.1], [0.2, 0.9, 0.1], [0.2, 0.9, 0.1]])
    figure = draw_changes(["coat", "coat", ""], probabilities, [1, 4, 9, 16], title="What?")
    first, second, third = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["coat #1", "␣"]
    before, after = (points.get_offsets()[:, 0].tolist() for points in first.collections[1:])
    assert before == pytest.approx([0.1, 0.9]) and after == pytest.approx([0.2, 0.1])
    assert [label.get_text() for label in second.get_yticklabels()] == ["coat #2"]
    assert len(third.get_yticklabels()) == 1  # nothing moves; one is shown
    assert pixels_across(figure) == 900


def test_pyplot_keeps_no_figure():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_queries(MAPS[:, :1])
    assert pyplot.get_fignums() == before


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"mqt_llava\[visual\]"):
        draw_queries(MAPS)
