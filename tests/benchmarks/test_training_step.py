"""The benchmark of training steps, with as few steps as it takes."""

import json
import subprocess
import sys

import pytest

from tests.builders.paths import REPOSITORY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The figures that the benchmark writes, and what it prints."""
    output = tmp_path_factory.mktemp("benchmark") / "figures.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "training_step.py", "--size", "tiny"]
    command += ["--draws", "2", "--rounds", "1", "--output", output]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.read_text()), printed


def test_figures_are_complete(run):
    figures, printed = run
    assert {"cpu", "gpu", "load_average_before", "torch", "transformers", "dtype", "batch_size"} <= set(figures)
    low, high = figures["draws"]
    assert low % 2 == 0 and 2 <= low <= 128 and low + high == 258
    for stage in ("1", "2"):
        summaries = figures["stages"][stage]
        assert [row["m"] for row in summaries["steps"]] == [low, high, 256]
        assert summaries["uniform"]["mean_m"] == 129
        for m in ("uniform", "256"):
            assert f"| {stage} | {m} |" in printed
            assert summaries[m]["mqt"]["seconds"] > 0 and summaries[m]["llava"]["seconds"] > 0
            assert set(summaries[m]["ratio"]) == {"flops", "kept_bytes", "seconds"}
            assert len(summaries[m]["seconds_ratio_by_round"]) == 1


def test_fewer_tokens_take_less(run):
    for stage in ("1", "2"):
        uniform, full = (run[0]["stages"][stage][m]["ratio"] for m in ("uniform", "256"))
        for key in ("flops", "kept_bytes"):
            assert 0.1 < uniform[key] < full[key] < 0.8


def test_flops_of_llava_are_those_of_the_closed_form(run):
    """Nothing goes uncounted: attention neither, nor the backward pass, in stage 1 without the decoder's weights."""
    batch_size, tokens, patches, vision_width, width, mlp_width, vocabulary = 2, 576 + 64, 576, 128, 256, 688, 1024
    positions = patches + 1
    vision_layer = 2 * positions * (4 + 8) * vision_width**2 + 4 * positions**2 * vision_width
    vision = 2 * patches * 3 * 14**2 * vision_width + 4 * vision_layer
    linear = 4 * 2 * tokens * (4 * width**2 + 3 * width * mlp_width) + 2 * tokens * width * vocabulary
    attention = 4 * 4 * tokens**2 * width
    # The first matrix of the projector has no use for the gradient of its input.
    projector = 2 * patches * (2 * vision_width * width + 3 * width**2)
    for stage, passes in (("1", 2), ("2", 3)):
        expected = batch_size * (vision + passes * linear + 3.5 * attention + projector)
        assert run[0]["stages"][stage]["uniform"]["llava"]["flops"] == expected
