"""The benchmark of dtypes, kinds of attention and compilation, with as few rounds as it takes."""

import json
import subprocess
import sys
from statistics import median

import pytest

from tests.builders.paths import REPOSITORY


@pytest.mark.slow  # it compiles
def test_every_setting_is_measured_beside_the_first(tmp_path):
    output = tmp_path / "figures.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "cpu_settings.py", "--rounds", "2", "--threads", "1"]
    printed = subprocess.run([*command, "--output", output], check=True, capture_output=True, text=True).stdout
    figures = json.loads(output.read_text())
    assert {"cpu", "torch", "transformers", "seed", "load_average_before", "load_average_after"} <= set(figures)
    rows = {(row["setting"], row["m"]): row for row in figures["rows"]}
    assert len(rows) == 14 == len(figures["rows"])
    for (_, m), row in rows.items():
        for metric in ("first_token", "per_token"):
            one, base = row[metric], rows["float32, eager", m][metric]
            assert len(one["seconds"]) == 2 and one["median"] == median(one["seconds"])
            assert one["speed_up"] == base["median"] / one["median"]
            least, greatest = one["speed_up_by_round"]
            assert least <= greatest and f"({least:.2f} to {greatest:.2f})" in printed
        assert row["first_token"]["median"] > row["per_token"]["median"]
