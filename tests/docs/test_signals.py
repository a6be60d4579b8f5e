"""docs/signals.md: its tables and the default are what was measured, and hold on mosaics that nobody had looked at."""

import json

import pytest

from mqt_llava import AdaptiveBudget
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


pytest.importorskip("matplotlib")
PAGE = (REPOSITORY / "docs" / "signals.md").read_text()
RESULTS, FRESH = (
    json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text())
    for name in ("signals", "signals_fresh")
)
REPORT = load_script("examples/fashion_mosaics/compare_signals_report.py")


def test_the_tables_are_what_was_measured():
    assert [table in PAGE for table in REPORT.to_tables(RESULTS)] == [True] * 4
    assert f"{sum(RESULTS['mosaics'].values())} mosaics of held-out items" in PAGE
    assert [len(axis.lines) > 3 for axis in REPORT.draw(RESULTS).axes] == [True, True]


def test_they_choose_the_default():
    assert RESULTS["chosen_power"] == AdaptiveBudget().unended_power
    for rules in ("better_rules", "better_rules_at_default_levels"):
        assert REPORT.DEFAULT in RESULTS[rules] and REPORT.DEFAULT in FRESH[rules]
        assert not {"product of probabilities", "margin", "entropy"} & set(RESULTS[rules])
