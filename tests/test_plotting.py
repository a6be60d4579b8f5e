"""The style of figures, which holds where they are drawn and nowhere else."""

import sys

import pytest

from mqt_llava.plotting import BLUE, COLOURS, MARKERS, STYLE, in_style, new_figure, save_figure, visual_token_axis


@in_style
def draw():
    figure = new_figure(3)
    axis = figure.subplots()
    axis.plot([1, 4], [0, 1], color=BLUE)
    visual_token_axis(axis, [4, 1, 2], "visual tokens")
    return figure


def test_figures_have_a_light_ground_of_their_own_and_ticks_where_they_are_measured(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"figure.facecolor": "black", "axes.facecolor": "black"}):
        figure = draw()
        assert matplotlib.rcParams["figure.facecolor"] == "black"
    (axis,) = figure.axes
    assert figure.get_facecolor() == axis.get_facecolor() == (1, 1, 1, 1)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4"]
    assert not len(axis.get_xticks(minor=True))
    for name in ("a", "b"):
        save_figure(figure, tmp_path / "new" / f"{name}.png")
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()


def test_colours_are_told_apart_and_have_markers():
    colors = pytest.importorskip("matplotlib.colors")
    # On white with at least 2:1, which thick lines and markers need; letters are darker.
    luminances = [sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), colors.to_rgb(name))) for name in COLOURS]
    assert len(MARKERS) == len(set(MARKERS)) == len(set(COLOURS)) and max(luminances) < 0.75
    assert sum(colors.to_rgb(STYLE["text.color"])) < 0.6


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"mqt_llava\[visual\]"):
        draw()
