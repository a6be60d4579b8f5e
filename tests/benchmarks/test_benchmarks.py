"""The benchmarks, with as few rounds as it takes: what all of them write, and what each counts."""

import json
import subprocess
import sys
from dataclasses import dataclass
from statistics import median
from types import ModuleType

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.planning import request_cost
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


pytestmark = pytest.mark.costly
BENCHMARKS = REPOSITORY / "benchmarks"
ARGUMENTS = {
    "training_step": "--size tiny --draws 2",
    "first_token": "--size small --dtype float32",
    "question_pass": "--size small --dtype float32",
    "resampler_attention": "--size small --tower-rounds 1",
    "cpu_settings": "--size small",
    "calibration_time": "--prompts 60",
}
KERNEL_SIZES = {36: 4, 16: 6, 4: 12, 1: 24}
# The closed form of the small models' FLOPs.
PATCHES, VISION_WIDTH, WIDTH, MLP_WIDTH, VOCABULARY = 576, 128, 256, 688, 1024
PATCH_EMBEDDING = 2 * PATCHES * 3 * 14**2 * VISION_WIDTH
VISION_LAYER = 2 * (PATCHES + 1) * (4 + 8) * VISION_WIDTH**2 + 4 * (PATCHES + 1) ** 2 * VISION_WIDTH


def decoder_linear(tokens: int) -> int:
    return 4 * 2 * tokens * (4 * WIDTH**2 + 3 * WIDTH * MLP_WIDTH)


@dataclass
class Run:
    figures: dict
    markdown: str
    printed: str


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a benchmark with two rounds as it is typed, once."""
    runs = {}

    def run(name: str) -> Run:
        if name not in runs:
            output = tmp_path_factory.mktemp(name) / "figures.json"
            command = [sys.executable, BENCHMARKS / f"{name}.py", *ARGUMENTS[name].split(), "--rounds", "2"]
            command += ["--threads", "1", "--output", output]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[name] = Run(json.loads(output.read_text()), output.with_suffix(".md").read_text(), printed)
        return runs[name]

    return run


def load(name: str) -> ModuleType:
    return load_script(f"benchmarks/{name}.py")


def parts_of(figures) -> list[dict]:
    """Every mapping in a result."""
    parts = figures if isinstance(figures, list) else list(figures.values()) if isinstance(figures, dict) else []
    return [*([figures] if isinstance(figures, dict) else []), *(part for one in parts for part in parts_of(one))]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "cpu_settings" else []) for name in ARGUMENTS]
)
def test_a_result_says_where_it_comes_from_and_what_was_compared(run, name):
    one = run(name)
    origin = {"cpu", "gpu", "size", "seed", "torch", "transformers", "load_average_before", "load_average_after"}
    assert origin <= set(one.figures)
    assert (one.figures["threads"], one.figures["rounds"]) == (1, 2)
    lines = one.markdown.splitlines()
    assert len(lines) > 2 and set(lines) <= set(one.printed.splitlines()) | {""}
    timed = [part for part in parts_of(one.figures) if isinstance(part.get("seconds"), list)]
    for part in timed:
        middle = median(part["seconds"])
        assert len(part["seconds"]) in (2, 4) and part.get("median", middle) == middle
    ratios = [(key, value, part) for part in parts_of(one.figures) for key, value in part.items()]
    compared = [(key, value, part[f"{key}_by_round"]) for key, value, part in ratios if f"{key}_by_round" in part]
    assert compared or name == "training_step"
    for key, value, (least, greatest) in compared:
        assert least <= value * (1 + 1e-9) and value <= greatest * (1 + 1e-9), key
        assert f"({least:.2f} to {greatest:.2f})" in one.markdown or f"({least:.3f} to {greatest:.3f})" in one.markdown


@pytest.mark.parametrize("name", ["serving", "serving_backends", "serving_sizes", "endurance", "convert_7b"])
def test_help_needs_no_torch(name):
    code = "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(BENCHMARKS / f"{name}.py"), "--help"]
    environment = {"PYTHONPATH": str(BENCHMARKS)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert "--output" in printed and f"benchmarks/{name}.py" in printed


@pytest.mark.parametrize(
    "name, page",
    [
        ("cpu_settings", "docs/speed.md"),
        ("question_pass", "docs/planning.md"),
        ("serving", "docs/serving.md"),
        ("serving", "benchmarks/results/serving.md"),
        ("resampler_attention", "benchmarks/results/resampler_attention.md"),
    ],
)
def test_tables_are_what_was_measured(name, page):
    figures = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    assert load(name).report(figures["rows"]) in (REPOSITORY / page).read_text()


# The harness


def test_a_ratio_is_that_of_the_medians_beside_those_of_the_rounds():
    harness = load("harness")
    row = harness.compare("ratio", [1.0, 2.0, 9.0], [4.0, 1.0, 3.0])
    assert row == {"ratio": 2 / 3, "ratio_by_round": [0.25, 3.0]}
    assert harness.spread(row, "ratio", 2) == "0.67 (0.25 to 3.00)"


def test_every_call_has_its_turn_in_each_round():
    class Reversed:
        def sample(self, names, number):
            return names[::-1][:number]

    calls = []
    functions = {name: lambda name=name: calls.append(name) or f"{name}{len(calls)}" for name in "abc"}
    turns = {"a": ["a3", "a6"], "b": ["b2", "b5"], "c": ["c1", "c4"]}
    assert load("harness").take_turns(functions, 2, Reversed()) == turns


@pytest.mark.parametrize("rounds", ["0", "-1", "1.5", "many"])
def test_rounds_are_counted(rounds, capsys):
    parser = load("harness").command_line("what it does", rounds={"default": 3})
    assert parser.parse_args([]).rounds == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", rounds])
    assert f"argument --rounds: '{rounds}' must be a whole number of at least 1" in capsys.readouterr().err


# What each counts


def test_training_takes_less_with_fewer_tokens(run):
    figures = run("training_step").figures
    low, high = figures["draws"]
    assert low % 2 == 0 and 2 <= low <= 128 and low + high == 258
    for stage in ("1", "2"):
        summaries = figures["stages"][stage]
        assert [row["m"] for row in summaries["steps"]] == [low, high, 256]
        assert summaries["uniform"]["mean_m"] == 129
        uniform, full = (summaries[m]["ratio"] for m in ("uniform", "256"))
        for key in ("flops", "kept_bytes"):
            assert 0.1 < uniform[key] < full[key] < 0.8
        steps = summaries["steps"][-1]
        assert full["seconds"] == median(steps["mqt"]["seconds"]) / median(steps["llava"]["seconds"])
        by_round = [mqt / llava for mqt, llava in zip(steps["mqt"]["seconds"], steps["llava"]["seconds"])]
        assert summaries["256"]["seconds_ratio_by_round"] == by_round


def test_training_flops_are_those_of_the_closed_form(run):
    """Nothing goes uncounted: attention neither, nor the backward pass, in stage 1 without the decoder's weights."""
    batch_size, tokens = 2, PATCHES + 64
    vision = PATCH_EMBEDDING + 4 * VISION_LAYER
    linear = decoder_linear(tokens) + 2 * tokens * WIDTH * VOCABULARY
    attention = 4 * 4 * tokens**2 * WIDTH
    # The first matrix of the projector has no use for the gradient of its input.
    projector = 2 * PATCHES * (2 * VISION_WIDTH * WIDTH + 3 * WIDTH**2)
    for stage, passes in (("1", 2), ("2", 3)):
        expected = batch_size * (vision + passes * linear + 3.5 * attention + projector)
        assert run("training_step").figures["stages"][stage]["uniform"]["llava"]["flops"] == expected


def test_a_teacher_takes_one_pass_without_gradients(run):
    """LLaVA's projector, the decoder at its length, and the head where answers are predicted."""
    batch_size, tokens, answers = 2, PATCHES + 64, 32
    decoder = decoder_linear(tokens) + 4 * 4 * tokens**2 * WIDTH + 2 * answers * WIDTH * VOCABULARY
    expected = batch_size * (decoder + 2 * PATCHES * (VISION_WIDTH * WIDTH + WIDTH**2))
    figures = run("training_step").figures
    for row in figures["distillation"]["1"]["steps"]:
        assert row["distilled"]["flops"] - row["plain"]["flops"] == expected
        # What is learned from are distributions over the answer tokens, of teacher and model.
        more = (row["distilled"]["kept_bytes"] - row["plain"]["kept_bytes"]) / (batch_size * answers * VOCABULARY * 4)
        assert 2 <= more < 5
        assert row["distilled"]["alive_bytes"] > row["plain"]["alive_bytes"] > row["plain"]["kept_bytes"]
    assert list(figures["distillation"]) == ["1"]


def test_live_memory_is_what_is_alive_at_once():
    memory, before = load("live_memory").LiveMemory(), torch.ones(1000)
    with memory:
        first = before + 1
        second = first.view(10, 100) * 2
        del first
        third = second[:5] + before[:500].view(5, 100)
        before.add_(third.sum())
    assert memory.peak == 4 * 2000 and memory.now == 4 * 1500


def test_first_token_flops_are_those_of_the_closed_form(run):
    """Nothing goes uncounted on either side, and the promise is no smaller for work that MQT-LLaVA need not do."""
    whole_tower = PATCH_EMBEDDING + 4 * VISION_LAYER
    projector = 2 * PATCHES * (VISION_WIDTH * WIDTH + WIDTH**2)

    def prefill(tokens):
        return decoder_linear(tokens) + 4 * 4 * tokens**2 * WIDTH + 2 * WIDTH * VOCABULARY

    def image_path(batch, m):
        shared = 2 * (m + PATCHES) * VISION_WIDTH**2 + 2 * m * PATCHES * VISION_WIDTH
        each = 2 * PATCHES * VISION_WIDTH**2 + 2 * m * PATCHES * VISION_WIDTH
        each += 2 * m * VISION_WIDTH * (VISION_WIDTH + WIDTH)
        return shared + batch * (PATCH_EMBEDDING + 3 * VISION_LAYER + each)

    figures = run("first_token").figures
    assert figures["dtype"] == "torch.float32" and set(figures["matrix_product_seconds"]) > {"torch.float32"}
    cases = [(row["batch"], row["new_tokens"], row["m"]) for row in figures["first_token"]]
    assert cases == [(*case, m) for case in [(1, 1), (1, 16), (4, 1)] for m in (1, 16, 64, 256)]
    for row in figures["first_token"]:
        if row["new_tokens"] == 1:
            batch, m = row["batch"], row["m"]
            assert row["llava"]["flops"] == batch * (whole_tower + projector + prefill(576 + 64))
            assert row["mqt"]["flops"] == image_path(batch, m) + batch * prefill(m + 64)
    assert [(row["batch"], row["m"]) for row in figures["image_path"]] == [(1, 16), (1, 256), (4, 16), (4, 256)]
    for row in figures["image_path"]:
        assert row["vision_tower"]["flops"] == row["batch"] * whole_tower
        assert row["image_path"]["flops"] == image_path(row["batch"], row["m"])


def test_adaptive_processes_no_visual_token_twice(run):
    rows = run("first_token").figures["adaptive"]
    assert [row["ends_at"] for row in rows] == [256, 16] * 3
    for row in rows:
        adaptive, plain = row["adaptive"]["decoder_tokens"], row["plain"]["decoder_tokens"]
        assert plain == row["ends_at"] + 64 + row["new_tokens"] - 1
        # Climbing reads the text behind the image again at two levels; stopping at the first its last token.
        assert adaptive - plain == (2 * 24 if row["ends_at"] == 256 else 1)


def test_question_flops_are_those_of_the_planner(run):
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
    rows = run("question_pass").figures["rows"]
    cases = [(row["batch"], row["question_tokens"], row["m"]) for row in rows]
    assert cases == [(*case, m) for case in [(1, 24), (1, 100), (4, 24)] for m in KERNEL_SIZES]
    for row, (batch, question_tokens, m) in zip(rows, cases):
        request = {"text_tokens": 40 + question_tokens, "batch_size": batch}
        quecc_config = QueCCLlavaConfig(**parts, kernel_size=KERNEL_SIZES[m], vision_context_layers=[2, 2, 2, 3])
        quecc = request_cost(quecc_config, query_tokens=question_tokens, **request)
        mqt = request_cost(MQTLlavaConfig(**parts), num_visual_tokens=m, **request)
        assert row["quecc"]["flops"] == quecc.flops.total and row["mqt"]["flops"] == mqt.flops.total
        assert row["question"]["flops"] == quecc.flops.question
        assert row["flops_ratio"] == quecc.flops.total / mqt.flops.total
        assert quecc.flops.vision_tower == mqt.flops.vision_tower
        # The question is the only difference in the decoder.
        assert row["mqt"]["decoder_tokens"] == 40 + m + question_tokens
        assert row["quecc"]["decoder_tokens"] - row["mqt"]["decoder_tokens"] == question_tokens
        assert row["question"]["decoder_tokens"] == question_tokens


@pytest.mark.slow  # it compiles
def test_every_setting_is_measured_beside_the_first(run):
    rows = {(row["setting"], row["m"]): row for row in run("cpu_settings").figures["rows"]}
    assert len(rows) == 14
    for (_, m), row in rows.items():
        for metric in ("first_token", "per_token"):
            assert row[metric]["speed_up"] == rows["float32, eager", m][metric]["median"] / row[metric]["median"]
        assert row["first_token"]["median"] > row["per_token"]["median"]
