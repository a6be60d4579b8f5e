"""The benchmark of what QueCC's question costs, with as few rounds as it takes."""

import json
import subprocess
import sys

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.planning import request_cost
from tests.builders.paths import REPOSITORY


CASES, KERNEL_SIZES = [(1, 24), (1, 100), (4, 24)], {36: 4, 16: 6, 4: 12, 1: 24}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The figures that the benchmark writes, and what it prints."""
    output = tmp_path_factory.mktemp("benchmark") / "figures.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "question_pass.py", "--size", "small", "--repeats", "1"]
    command += ["--dtype", "float32", "--threads", "1", "--output", output]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.read_text()), printed


def test_figures_are_complete(run):
    figures, printed = run
    assert {"cpu", "threads", "load_average_before", "torch", "transformers", "seed", "dtype"} <= set(figures)
    assert [(row["batch"], row["question_tokens"], row["m"]) for row in figures["rows"]] == [
        (*case, m) for case in CASES for m in KERNEL_SIZES
    ]
    for row in figures["rows"]:
        assert row["time_ratio"] > 0 and row["question"]["median"] > 0
        assert f"{row['time_ratio']:.3f} (" in printed


def test_flops_are_those_of_the_planner(run):
    """So the prediction is what the planner says before anything is run."""
    parts = {
        "vision_config": CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=336,
            patch_size=14,
        ),
        "text_config": LlamaConfig(
            hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=1024
        ),
        "image_token_id": 1023,
    }  # fmt: skip
    for row in run[0]["rows"]:
        batch, question_tokens, m = (row[name] for name in ("batch", "question_tokens", "m"))
        request = {"text_tokens": 40 + question_tokens, "batch_size": batch}
        quecc_config = QueCCLlavaConfig(**parts, kernel_size=KERNEL_SIZES[m], vision_context_layers=[2, 2, 2, 3])
        quecc = request_cost(quecc_config, query_tokens=question_tokens, **request)
        mqt = request_cost(MQTLlavaConfig(**parts), num_visual_tokens=m, **request)
        assert row["quecc"]["flops"] == quecc.flops.total and row["mqt"]["flops"] == mqt.flops.total
        assert row["question"]["flops"] == quecc.flops.question
        assert row["flops_ratio"] == round(quecc.flops.total / mqt.flops.total, 4)
        assert quecc.flops.vision_tower == mqt.flops.vision_tower


def test_the_question_is_the_only_difference_in_the_decoder(run):
    for row in run[0]["rows"]:
        assert row["mqt"]["decoder_tokens"] == 40 + row["m"] + row["question_tokens"]
        assert row["quecc"]["decoder_tokens"] - row["mqt"]["decoder_tokens"] == row["question_tokens"]
        assert row["question"]["decoder_tokens"] == row["question_tokens"]
