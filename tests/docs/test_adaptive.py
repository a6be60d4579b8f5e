"""docs/adaptive.md: table and figure show the same half of the questions, as it was measured."""

import json

import pytest

from tests.builders.paths import CHECKPOINT, REPOSITORY
from tests.builders.scripts import load_script


RESULTS = json.loads((CHECKPOINT / "adaptive.json").read_text())
JUDGED = RESULTS["judged"]
PAGE = (REPOSITORY / "docs" / "adaptive.md").read_text()


def test_the_table_is_what_was_measured():
    tokens, share = RESULTS["mean_visual_tokens"], RESULTS["share_of_max"]
    assert f"| m = 16 | {RESULTS['accuracy_at_max']:.2%} | 16 |" in PAGE
    assert f"| adaptive, levels 1, 4 and 16 | {RESULTS['accuracy']:.2%} | {tokens:.2f} ({share:.1%}) |" in PAGE
    assert f"| oracle | {JUDGED['oracle'][1]:.2%} | {JUDGED['oracle'][0]:.2f} " in PAGE
    low, high = RESULTS["difference_95"]
    difference = f"{100 * RESULTS['difference']:.2f} points, 95% interval {100 * low:.2f} to {100 * high:.2f}"
    assert difference in PAGE


def test_promises_are_those_that_were_simulated():
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "promise.json").read_text())
    script = load_script("examples/fashion_mosaics/promise.py")
    assert script.to_table(results["simulations"]) in PAGE
    for row in results["simulations"]:
        assert results["pool"] >= 20 * row["prompts"] and row["p_value"] > 0.05  # no more broken than 5% by chance
        assert row["tokens_over_best"] < 1.35


def test_the_figure_draws_the_half_of_the_table():
    pytest.importorskip("matplotlib")
    (axis,) = load_script("examples/fashion_mosaics/adaptive_report.py").draw_judged_half(RESULTS).axes
    curve, chosen, fixed, oracle = (line.get_xydata().tolist() for line in axis.lines)
    chosen = chosen[0]
    assert chosen == [RESULTS["mean_visual_tokens"], 100 * RESULTS["accuracy"]]
    # What `generate` did is a point of the curve, which follows from the answers at every level.
    assert min(max(abs(chosen[0] - tokens), abs(chosen[1] - accuracy)) for tokens, accuracy in curve) < 0.1
    assert [m for m, _ in fixed] == [1, 2, 4, 8, 16]
    assert fixed[-1] == pytest.approx([16, 100 * RESULTS["accuracy_at_max"]], abs=0.01)
    assert oracle == [[JUDGED["oracle"][0], 100 * JUDGED["oracle"][1]]]
    assert f"judged on {JUDGED['questions']} questions" in PAGE
    assert "judged half" in axis.get_title()
    caption = PAGE.split("(images/adaptive.png)")[1].split("\n\n")[1]
    assert "judged half" in caption and "oracle" in caption
