"""The command that draws the documentation's pictures knows all of them, and papers' figures are marked as theirs."""

import pytest

from mqt_llava.evaluation.benchmarks import average, read_published
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


IMAGES = REPOSITORY / "docs" / "images"


def test_every_picture_has_its_command():
    commands = load_script("figures/draw_all.py").COMMANDS
    drawn = {name for names in commands for name in names.split(", ")}
    assert drawn == {path.name + "/" * path.is_dir() for path in IMAGES.iterdir() if path.name != "demo_web.png"}
    for command in commands.values():
        script = command.split()[0]
        assert script == "-m" or (REPOSITORY / script).is_file()


def test_published_figures_are_drawn_hollow_and_as_they_are():
    pytest.importorskip("matplotlib")
    published = load_script("figures/published.py")
    figure = published.draw()
    assert "not measured by this package" in figure.get_suptitle()
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert all(line.get_markerfacecolor() == "white" for axis in figure.axes for line in axis.lines)
    mqt = read_published()["models"]["MQT-LLaVA 7B"]
    assert lines["MQT-LLaVA: one model"].get_xydata().tolist() == [[m, average(mqt[m])] for m in sorted(mqt)]
    assert lines["QT-LLaVA: a model for each number"].get_ydata().tolist() == [50.6, 55.8, 57.9, 58.3, 58.8]
    # The table of the QueCC paper repeats MQT's figures; by hand, of its row QueCC at 36 tokens.
    quecc = [60.5, 62.5, 1442 / 20, 84.5, 70.6, 50.1, 75.8]
    assert published.mean_of_seven(published.OTHERS["quecc"]["by_visual_tokens"]["36"]) == pytest.approx(
        sum(quecc) / 7
    )


def test_the_diagram_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    load_script("figures/nested_tokens.py").main(["--output", str(tmp_path / "diagram.png")])
    assert (tmp_path / "diagram.png").stat().st_size > 20_000
