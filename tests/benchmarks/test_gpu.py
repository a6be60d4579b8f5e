"""The benchmark for GPUs, rehearsed on a CPU in tiny shapes, and the FLOPs and bytes behind its rooflines."""

import json
import random
import subprocess
import sys
import time
from argparse import Namespace
from itertools import product
from statistics import median

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script
from tests.builders.versions import needs_tracing


pytestmark = pytest.mark.costly
gpu = load_script("benchmarks/gpu.py")
gpu_cases = load_script("benchmarks/gpu_cases.py")
gpu_report = load_script("benchmarks/gpu_report.py")
roofline = load_script("benchmarks/roofline.py")
BATCHES = (1, 2)  # of the rehearsal
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def rehearse(output, *arguments: str) -> tuple[dict, str]:
    """The figures that the benchmark writes, and the Markdown beside them."""
    command = [sys.executable, REPOSITORY / "benchmarks/gpu.py", "--size", "small", "--device", "cpu"]
    subprocess.run([*command, "--output", output, *arguments], check=True, capture_output=True, text=True)
    return json.loads((output / "gpu.json").read_text()), (output / "gpu.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return rehearse(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def size(run):
    return run[0]["sizes"]["small"]


def expected_cases() -> set[tuple]:
    """Section, batch size, attention, compiled and m of everything that is to be measured or to be given a reason."""
    cases = set(product(("image_path", "prefill"), BATCHES, ATTENTIONS, (True, False), (1, 16, 64, 256)))
    cases |= set(product(("first_token",), BATCHES, ATTENTIONS, (False,), (1, 16, 64, 256)))
    return cases | set(product(("generate",), BATCHES, ATTENTIONS, (True, False), (16, 256)))


def left_out(figures: dict) -> dict[tuple, str]:
    """Why, by case as above."""
    return {
        (entry["section"], entry["batch"], entry["attention"], entry["compiled"], m): entry["reason"]
        for entry in figures["skipped"]
        for m in entry.get("visual_tokens", ())
    }


@needs_tracing
def test_every_case_is_measured_or_has_its_reason(run, size):
    figures, markdown = run
    assert {"cpu", "gpu", "load_average_before", "load_average_after", "torch", "transformers", "seed"} <= set(figures)
    keys = ("section", "batch", "attention", "compiled", "m")
    measured = {tuple(row[key] for key in keys) for row in size["rows"]}
    skipped = left_out(figures)
    assert measured | set(skipped) == expected_cases() and not measured & set(skipped)
    assert all(skipped.values())
    for case, reason in skipped.items():
        if case[2].startswith("flash"):
            assert reason.startswith("ImportError: FlashAttention")
        else:
            assert case[3] and "rehearsal" in reason
    assert {case[0] for case in measured if case[3]} == {"image_path", "prefill", "generate"}
    assert {"section": "host_to_device", "reason": "it needs a GPU"} in figures["skipped"]
    for row in size["rows"]:
        least, greatest = row["time_ratio_by_round"]
        assert f"{row['time_ratio']:.2f} ({least:.2f} to {greatest:.2f})" in markdown
    assert all(target["target"] in markdown and target["result"] in markdown for target in size["targets"])


def test_answers_have_a_first_token_and_further_ones(size):
    rows = [row for row in size["rows"] if row["section"] == "generate"]
    for first, further, whole in zip(rows[::3], rows[1::3], rows[2::3]):
        assert [row["metric"] for row in (first, further, whole)] == ["first_token", "per_token", "generate"]
        for model in ("mqt", "llava"):
            for seconds in zip(*(row[model]["seconds"] for row in (first, further, whole))):
                assert 0 < seconds[0] < seconds[2] and 0 < seconds[1] < seconds[2]


def test_ratios_are_those_of_the_medians(size):
    for row in size["rows"]:
        mqt, llava = row["mqt"], row["llava"]
        for model in (mqt, llava):
            assert len(model["seconds"]) == size["rounds"]
            assert model["median"] == median(model["seconds"])
            assert model["over_roofline"] == pytest.approx(model["median"] / model["roofline"])
        assert row["time_ratio"] == pytest.approx(llava["median"] / mqt["median"])
        rounds = [theirs / ours for theirs, ours in zip(llava["seconds"], mqt["seconds"])]
        assert row["time_ratio_by_round"] == pytest.approx([min(rounds), max(rounds)])


def test_rooflines_follow_from_the_measured_rates(size):
    rooflines = {}
    for row in size["rows"]:
        for model in ("mqt", "llava"):
            one = row[model]
            rooflines[row["metric"], row["batch"], model, row["m"]] = one["roofline"]
            longer = max(one["flops"] / size["flops_per_second"], one["bytes"] / size["bytes_per_second"])
            if row["metric"] in ("image_path", "prefill", "per_token"):
                assert one["roofline"] == pytest.approx(longer)
            else:  # parts, one after the other
                assert one["roofline"] >= longer * (1 - 1e-9)
    for batch, model, m in product(BATCHES, ("mqt", "llava"), (16, 256)):
        image_path, prefill, first_token, per_token, generate = (
            rooflines[metric, batch, model, m]
            for metric in ("image_path", "prefill", "first_token", "per_token", "generate")
        )
        assert first_token == pytest.approx(image_path + prefill)
        assert generate == pytest.approx(first_token + (size["new_tokens"] - 1) * per_token)


@needs_tracing
def test_compiled_is_what_was_compiled(size):
    for row in size["rows"]:
        for model in (row["mqt"], row["llava"]):
            assert (model["graphs"] > 0) == row["compiled"] and model["graph_breaks"] == 0


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    models = gpu_cases.Models(gpu_cases.SCALES["small"], "cpu")
    models.set_attention("eager")
    return models


def work(models, contender, batch: int) -> dict:
    m, scale = None if contender == "llava" else contender, models.scale
    config = models.of(contender).config
    return roofline.work_by_metric(config, m, batch, 64, scale.new_tokens, scale.shapes.dtype)


@pytest.mark.parametrize("contender", [1, 16, 256, "llava"])
def test_flops_are_those_that_are_counted(models, contender):
    def count(function) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function()
        return counter.get_total_flops()

    for batch in BATCHES:
        parts = work(models, contender, batch)
        for section in ("image_path", "prefill", "first_token"):
            case = gpu_cases.Case(section, batch, "eager", False, ())
            counted = count(gpu_cases.CALLS[section](models, case, contender, "cpu"))
            assert counted == sum(part.flops for part in parts[section])
        # A static cache would be attended to in its whole length, used or not.
        new_tokens = models.scale.new_tokens
        counted = count(gpu_cases.answer(models, case, contender, "cpu", max_new_tokens=new_tokens))
        assert counted == sum(part.flops for part in parts["generate"])
        assert parts["per_token"][0].flops * (new_tokens - 1) + sum(p.flops for p in parts["first_token"]) == counted


@pytest.mark.parametrize("contender", [16, "llava"])
def test_bytes_are_those_of_weights_and_cache(models, contender):
    model, batch = models.of(contender), 2
    parts = work(models, contender, batch)
    ids = models.prompt(contender, batch)
    case = gpu_cases.Case("prefill", batch, "eager", False, ())
    with torch.no_grad():
        cache = gpu_cases.read_prompt(models, case, contender, "cpu")().past_key_values
    kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    decoder = [*model.model.language_model.layers.parameters(), *model.model.language_model.norm.parameters()]
    read = sum(parameter.nbytes for parameter in decoder) + model.lm_head.weight.nbytes
    assert parts["prefill"][0].bytes == read + kv_bytes
    # Of the steps after the first token, the mean over what was there before and the token itself.
    tokens = ids.shape[1] + torch.arange(1, models.scale.new_tokens).double().mean().item()
    assert parts["per_token"][0].bytes == read + kv_bytes / ids.shape[1] * tokens
    compressor = model.model.multi_modal_projector if contender == "llava" else model.model.resampler
    image_path = [*model.model.vision_tower.parameters(), *compressor.state_dict().values()]
    assert parts["image_path"][0].bytes == sum(tensor.nbytes for tensor in image_path)


def test_a_copy_moves_its_size_twice(monkeypatch):
    monkeypatch.setattr(roofline, "least_seconds", lambda function, device: 0.5)
    rates = roofline.measure_rates("cpu", torch.float32, (8, 16), 4096)
    assert (rates.flops, rates.bytes) == (2 * 16**3 / 0.5, 2 * 4096 / 0.5)


@pytest.mark.parametrize(("factor", "result"), [(0.99, "met"), (1.01, "missed")])
def test_targets_are_met_or_missed(factor, result):
    """Measured values on either side of each limit, in the kind of attention where the baseline is fastest."""

    def row(section, metric, batch, compiled, m, median, llava, over_roofline, attention):
        return {
            "section": section, "metric": metric, "batch": batch, "compiled": compiled, "m": m, "attention": attention,
            "time_ratio": llava / median, "mqt": {"median": median, "over_roofline": over_roofline},
            "llava": {"median": llava},
        }  # fmt: skip

    rows = [
        row("prefill", "prefill", 8, True, 256, 1.0, 2.0, 1.25 * factor, "sdpa"),
        row("prefill", "prefill", 8, True, 256, 9.0, 2.0, 1.0, "eager"),
        row("prefill", "prefill", 1, True, 256, 0.1, 2.0, 1.0, "sdpa"),
        row("first_token", "first_token", 8, False, 16, factor, 4.0, 5.0, "sdpa"),
        row("first_token", "first_token", 8, False, 16, 0.1, 40.0, 5.0, "eager"),
        row("generate", "first_token", 8, False, 16, 0.1, 2.0, 5.0, "sdpa"),
        row("generate", "per_token", 1, True, 16, 2.3 * factor, 2.0, 5.0, "sdpa"),
        row("generate", "per_token", 1, False, 16, 0.1, 2.0, 5.0, "sdpa"),
    ]
    for measured, expected in ((rows, result), ([], "not measured")):
        targets = gpu_report.evaluate_targets({"rows": measured, "weight_read_seconds": 2.0}, 8)
        assert [target["result"] for target in targets] == [expected] * 3


class Event:
    """Stands in for `torch.cuda.Event`: it is recorded at once, and counts in milliseconds."""

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, other) -> float:
        return 1000 * (other.time - self.time)


def test_on_a_gpu_events_tell_the_time_and_peaks_are_those_of_one_model(models, monkeypatch):
    calls = []
    taken = iter([7, 5, 3, 2, 4, 1])  # by the warm-up of each model, by its rounds
    for name, stand_in in {
        "synchronize": lambda: calls.append("synchronize"),
        "reset_peak_memory_stats": lambda: calls.append("reset"),
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 1000 + next(taken),
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(models, "device", "cuda")
    case = gpu_cases.Case("generate", 1, "sdpa", False, (16,))
    figures = gpu_cases.measure(models, case, 2, random.Random(0))
    # One warm-up and two rounds of both: the device is waited for before the peak is reset, and before time is read.
    assert calls == ["synchronize", "reset", "synchronize"] * 6
    rows = gpu.summarise(models, case, figures, roofline.Rates(1e9, 1e9))
    for row, name, most in ((rows[0], "mqt", 7), (rows[0], "llava", 5)):
        weights = sum(parameter.nbytes for parameter in getattr(models, name).parameters())
        assert row[name]["peak_bytes"] == weights + most
    for row in rows:
        assert 0 < row["mqt"]["median"] < 10
    assert rows[0]["mqt"]["median"] + rows[1]["mqt"]["median"] < rows[2]["mqt"]["median"]
    peaks = f"{rows[0]['mqt']['peak_bytes'] / 1e9:.1f} / {rows[0]['llava']['peak_bytes'] / 1e9:.1f}"
    assert gpu_report.row_line(rows[0]).endswith(f"| {peaks}")


def fail_at_two(monkeypatch, error: BaseException) -> None:
    """Only the case with that batch size."""

    def measure(models, case, rounds, rng):
        if case.batch == 2:
            raise error
        return gpu_cases.measure(models, case, rounds, rng)

    monkeypatch.setattr(gpu, "measure", measure)


def test_what_goes_wrong_in_one_case_leaves_the_others(tmp_path, monkeypatch):
    fail_at_two(monkeypatch, torch.OutOfMemoryError("no memory left"))
    cases = [gpu_cases.Case("prefill", batch, "sdpa", False, (16,)) for batch in (2, 1)]
    entries = {case: {"size": "small", **vars(case), "reason": gpu.NOT_REACHED} for case in cases}
    result = gpu.begin(Namespace(device="cpu")) | {"cuda": None, "sizes": {"small": {"rows": []}}}
    result["skipped"] = list(entries.values())
    gpu.Run(result, "cpu", 1, tmp_path).measure_size("small", entries, deadline=float("inf"))
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["batch"], row["m"]) for row in written["sizes"]["small"]["rows"]] == [(1, 16)]
    assert left_out(written) == {("prefill", 2, "sdpa", False, 16): "OutOfMemoryError: no memory left"}


def test_a_run_that_is_cut_short_leaves_what_it_has(tmp_path, monkeypatch):
    """Killed in the second case: the first is on disk, and what was not reached is named."""
    fail_at_two(monkeypatch, KeyboardInterrupt())
    arguments = ["gpu.py", "--size", "small", "--device", "cpu", "--sections", "image_path", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path)])
    cases = [gpu_cases.Case("image_path", batch, "sdpa", False, (16,)) for batch in (1, 2)]
    monkeypatch.setattr(gpu, "all_cases", lambda scale: cases)
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["batch"] for row in written["sizes"]["small"]["rows"]] == [1]
    assert left_out(written) == {("image_path", 2, "sdpa", False, 16): gpu.NOT_REACHED}


def test_without_time_everything_is_named_as_left_out(tmp_path):
    figures, markdown = rehearse(tmp_path, "--time-limit", "1")
    assert figures["sizes"]["small"]["rows"] == []
    skipped = left_out(figures)
    assert set(skipped) == expected_cases()
    assert "s are left" in skipped["prefill", 2, "sdpa", True, 256]
    assert "s are left" in markdown and "not measured" in markdown
