"""Scores that a sweep has written."""

import json
import re

import pytest

from mqt_llava.planning import Observation, read_observations


ROWS = [(0.5, 1, 0.25), (7, 256, 0.5)]


def test_files_of_all_kinds_hold_the_same(tmp_path):
    dicts = [{"task": "any", "score": score, "tokens": T, "params_billion": N} for N, T, score in ROWS]
    (tmp_path / "sweep.json").write_text(json.dumps(dicts))
    (tmp_path / "sweep.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in dicts))
    lines = ["task,score,tokens,params_billion", *(f"any,{score},{T},{N}" for N, T, score in ROWS)]
    (tmp_path / "sweep.csv").write_text("\n".join(lines))
    for kind in ("json", "jsonl", "csv"):
        assert read_observations(tmp_path / f"sweep.{kind}") == [Observation(*row) for row in ROWS]


@pytest.mark.parametrize(
    "row, message",
    [
        ([7, 256, 53.5], "has score 53.5, but it must be a share in 0..1"),
        ([7, 256, -0.1], "has score -0.1"),
        ([7, 256, float("nan")], "has score nan"),
        ([0, 256, 0.5], "has params_billion 0.0, but it must be above 0"),
        ([7, -1, 0.5], "has tokens -1.0, but it must be above 0"),
        ([7, 256], "must be three numbers: params_billion, tokens, score"),
        ({"tokens": 256, "score": 0.5}, "must be three numbers"),
        ({"params_billion": "7B", "tokens": 256, "score": 0.5}, "must be three numbers"),
        (None, "must be three numbers"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    (tmp_path / "sweep.json").write_text(json.dumps([ROWS[0], row]))
    with pytest.raises(ValueError, match="Row 2 of `table` .*" + re.escape(message)):
        read_observations(tmp_path / "sweep.json")


def test_bad_files(tmp_path):
    (tmp_path / "sweep.xlsx").write_text("")
    with pytest.raises(ValueError, match="must end in .csv, .json or .jsonl"):
        read_observations(tmp_path / "sweep.xlsx")
    (tmp_path / "sweep.csv").write_text("size,tokens,score\n7,1,0.5\n")
    with pytest.raises(ValueError, match="Row 1 of `table`"):
        read_observations(tmp_path / "sweep.csv")
