"""The benchmark of first tokens, image path and adaptive budgets, with as few rounds as it takes."""

import json
import subprocess
import sys

import pytest

from tests.builders.paths import REPOSITORY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The figures that the benchmark writes, and what it prints."""
    output = tmp_path_factory.mktemp("benchmark") / "figures.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "first_token.py", "--size", "small", "--repeats", "1"]
    command += ["--dtype", "float32", "--threads", "1", "--output", output]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.read_text()), printed


def test_figures_are_complete(run):
    figures, printed = run
    assert {"cpu", "threads", "load_average_before", "torch", "transformers", "seed"} <= set(figures)
    assert figures["dtype"] == "torch.float32" and set(figures["matrix_product_seconds"]) > {"torch.float32"}
    cases = [(1, 1), (1, 16), (4, 1)]
    assert [(row["batch"], row["new_tokens"], row["m"]) for row in figures["first_token"]] == [
        (*case, m) for case in cases for m in (1, 16, 64, 256)
    ]
    assert [(row["batch"], row["m"]) for row in figures["image_path"]] == [(1, 16), (1, 256), (4, 16), (4, 256)]
    assert [(row["batch"], row["new_tokens"], row["ends_at"]) for row in figures["adaptive"]] == [
        (*case, m) for case in cases for m in (256, 16)
    ]
    for row in figures["first_token"] + figures["image_path"] + figures["adaptive"]:
        assert row["time_ratio"] > 0
        assert f"{row['time_ratio']:.3f} (" in printed


def test_flops_are_those_of_the_closed_form(run):
    """Nothing goes uncounted on either side, and the promise is no smaller for work that MQT-LLaVA need not do."""
    patches, vision_width, width, mlp_width, vocabulary = 576, 128, 256, 688, 1024
    positions = patches + 1
    patch_embedding = 2 * patches * 3 * 14**2 * vision_width
    vision_layer = 2 * positions * (4 + 8) * vision_width**2 + 4 * positions**2 * vision_width
    whole_tower = patch_embedding + 4 * vision_layer
    projector = 2 * patches * (vision_width * width + width**2)

    def prefill(tokens):
        linear = 4 * 2 * tokens * (4 * width**2 + 3 * width * mlp_width)
        return linear + 4 * 4 * tokens**2 * width + 2 * width * vocabulary

    def image_path(batch, m):
        shared = 2 * (m + patches) * vision_width**2 + 2 * m * patches * vision_width
        each = 2 * patches * vision_width**2 + 2 * m * patches * vision_width
        each += 2 * m * vision_width * (vision_width + width)
        return shared + batch * (patch_embedding + 3 * vision_layer + each)

    figures, _ = run
    for row in figures["first_token"]:
        if row["new_tokens"] == 1:
            batch, m = row["batch"], row["m"]
            assert row["llava"]["flops"] == batch * (whole_tower + projector + prefill(576 + 64))
            assert row["mqt"]["flops"] == image_path(batch, m) + batch * prefill(m + 64)
    for row in figures["image_path"]:
        assert row["vision_tower"]["flops"] == row["batch"] * whole_tower
        assert row["image_path"]["flops"] == image_path(row["batch"], row["m"])


def test_adaptive_processes_no_visual_token_twice(run):
    for row in run[0]["adaptive"]:
        adaptive, plain = row["adaptive"]["decoder_tokens"], row["plain"]["decoder_tokens"]
        assert plain == row["ends_at"] + 64 + row["new_tokens"] - 1
        # Climbing reads the text behind the image again at two levels; stopping at the first its last token.
        assert adaptive - plain == (2 * 24 if row["ends_at"] == 256 else 1)
