"""What the studies of Fashion-MNIST mosaics share."""

import json

import pytest

from tests.builders.scripts import load_script


def run_all(folder, runs: list, seeds: list[int], **facts) -> list[tuple[str, int]]:
    """Runs a study of two variants, and reads which runs its results are of."""
    studies = load_script("examples/fashion_mosaics/studies.py")
    args = studies.study_parser(None, str(folder), seeds, 1).parse_args([])

    def run(name: str, seed: int) -> dict:
        runs.append((name, seed))
        return {"variant": name, "seed": seed}

    studies.run_all(args, {"plain": [], "better": []}, run, **facts)
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [(line["variant"], line["seed"]) for line in map(json.loads, lines)]


def test_what_results_hold_is_not_run_again(tmp_path):
    runs = []
    first = [("plain", 1), ("better", 1)]
    assert run_all(tmp_path, runs, [1]) == runs == first
    assert run_all(tmp_path, runs, [1, 2]) == runs == [*first, ("plain", 2), ("better", 2)]


def test_results_of_a_variant_as_it_was_are_refused(tmp_path):
    run_all(tmp_path, [], [1])
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"variant": "better", "seed": 1, "mosaics": 1, "arguments": ["--m", 4]}) + "\n")
    with pytest.raises(SystemExit, match=r"has better by \['--m', 4\], which is not so here"):
        run_all(tmp_path, [], [1])


def test_results_of_another_study_are_kept(tmp_path):
    run_all(tmp_path, [], [1], share=0.1)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=r"is about \{'share': 0.1\}, but this call about \{'share': 0.2\}"):
        run_all(tmp_path, [], [1], share=0.2)
    assert (tmp_path / "results.jsonl").read_bytes() == before
