"""The page on visualization and the example, run and compared with what was measured."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.visualization import ImageAnswer, answer_heatmap, coverage, query_maps
from tests.builders.paths import CHECKPOINT, REPOSITORY


PAGE = (REPOSITORY / "docs" / "visualization.md").read_text()
RESULTS = json.loads((REPOSITORY / "benchmarks" / "results" / "heatmap_mass.json").read_text())
FIGURES = {"heatmaps", "visual_tokens", "queries", "coverage", "changes"}


@pytest.mark.parametrize("picture", ["mosaic_0.png", "mosaic_1.png", "mosaic_2.png", "mosaic_3.png"])
def test_the_heatmap_finds_the_top_left_cell(picture):
    """As in heatmap_mass.py: by far the most of it lies in one cell of sixteen, the one that is asked for."""
    pytest.importorskip("captum")
    folder = REPOSITORY / "model_cards" / "mqt-llava-tiny"
    model = MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype="float64").eval().requires_grad_(False)
    image = Image.open(REPOSITORY / "examples" / "images" / picture)
    answer = ImageAnswer.ask(model, AutoProcessor.from_pretrained(folder), image, RESULTS["question"])
    cells = answer_heatmap(answer, RESULTS["budget"]).clamp(min=0)
    assert cells[0, 0] / cells.sum() > 0.75


def test_the_table_is_what_was_measured():
    shares = {f"{figures[key]:.1%}" for figures in RESULTS["results"].values() for key in figures}
    rows = re.findall(r"^\| (.*?) \| ([\d.%, ]+) \| ([\d.%, ]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 14
    for _, *cells in rows:
        assert {share for cell in cells for share in cell.split(", ")} <= shares
    (row,) = [row for row in rows if row[0] == "**integrated gradients**"]
    ours = RESULTS["results"]["integrated_gradients"]
    assert row[1:] == (f"{ours['all']:.1%}", f"{ours['right']:.1%}")


def test_coverage_on_the_page():
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT)
    covered = coverage(query_maps(model)).mean((1, 2))
    expected = [f"{covered[m - 1]:.2f}" for m in (1, 2, 4, 8, 16)]
    (figures,) = re.findall(r"it is ([\d., and]+) for m = 1, 2, 4, 8 and 16", PAGE)
    assert re.findall(r"\d\.\d+", figures) == expected


def test_the_snippet_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("captum")
    (tmp_path / "model_cards").symlink_to(REPOSITORY / "model_cards")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(snippet, {})
    assert "['sneaker', '</s>']" in capsys.readouterr().out
    assert Image.open(tmp_path / "heatmap.png").size[0] == 900


def test_the_example_saves_every_figure(tmp_path):
    pytest.importorskip("captum")
    (command,) = re.findall(r"^    python (examples/explain.py .*\n.*)$", PAGE, re.MULTILINE)
    command = [*shlex.split(command.replace("\\\n", "")), "--output", str(tmp_path)]
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True)
    assert {path.stem for path in tmp_path.glob("*.png")} == FIGURES
    assert all(Image.open(path).size[0] == 1350 for path in tmp_path.glob("*.png"))
    assert {path.stem for path in (REPOSITORY / "docs" / "images" / "explain").glob("*.png")} == FIGURES
