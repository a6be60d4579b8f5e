"""An hour's load: what it is made of, its log, and a rehearsal in seconds."""

import importlib.util
import json
import os
import random
import subprocess
import sys

import pytest

from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script
from tests.serving.serving_cases import ENVIRONMENT, MOSAICS, TINY


BENCHMARKS = REPOSITORY / "benchmarks"


HAS_VLLM = importlib.util.find_spec("vllm") is not None
LOAD, REPORT = load_script("benchmarks/endurance_load.py"), load_script("benchmarks/endurance_report.py")


@pytest.fixture
def load():
    return LOAD.Load("model", MOSAICS, 8, random.Random(0))


def test_every_kind_comes(load):
    requests = [load.request() for _ in range(300)]
    assert {request.kind for request in requests} == set(LOAD.KINDS)
    numbers = [request.body.get("mm_processor_kwargs", {}).get("num_visual_tokens") for request in requests]
    assert {m for m in numbers if type(m) is int} > set(range(1, 17)) and "auto" in numbers
    assert {request.body["stream"] for request in requests} == {True, False}
    json.dumps([request.body for request in requests])


def test_transformers_answers_what_is_no_bad_request(load):
    LOAD.start_transformers(str(TINY))
    for kind in set(LOAD.KINDS) - {"bad", "cancelled"}:
        body = load.request(kind).body
        ids, level = LOAD.ask_transformers(body)
        assert 0 < len(ids) <= body["max_tokens"] and bool(level) == (kind == "auto")


def sample(seconds: float, mb: int, **outcomes: int) -> dict:
    return {
        "seconds": seconds, "rss_mb": {"server": mb, "engine": 2 * mb}, "kv_cache_usage_perc": 0.5,
        "encoder_cache": {"size": 64, "stored": 64, "held": 16}, "num_preemptions_total": 3.0,
        "num_requests_running": 0.0, "num_requests_waiting": 0.0, "outcomes": outcomes,
    }  # fmt: skip


def test_a_log_that_was_cut_short_is_reported(tmp_path):
    log = tmp_path / "log.jsonl"
    begin = {"event": "begin", "minutes": 60, "clients": 8, "pictures": 100, "cpu": "a CPU", "vllm": "vllm 0"}
    samples = [{"event": "sample", **sample(60.0 * i, 100 + i, answered=10 * i, same=i)} for i in range(1, 11)]
    log.write_text("\n".join(map(json.dumps, [begin, *samples])) + '\n{"event": "sam')
    events = REPORT.read_log(log)
    summary = REPORT.summarize(events)
    assert "10 minutes of 60" in summary and "100 requests: 100 answered" in summary and "0 differ" in summary
    # Two of ten warm up; of eight the quarters are two.
    assert "server: 104 MB in the first quarter after the warm-up, 110 MB in the last one, 110 MB" in summary
    pytest.importorskip("matplotlib")
    REPORT.draw(events).savefig(tmp_path / "figure.png")


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM needs an environment of its own: nox -s vllm")
def test_a_rehearsal(tmp_path):
    log = tmp_path / "log.jsonl"
    command = [sys.executable, BENCHMARKS / "endurance.py", "--minutes", "0.3", "--sample-seconds", "2"]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    subprocess.run([*command, "--output", log, "--", "--enforce-eager"], check=True, env=environment)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    by_event = {name: [one for one in events if one["event"] == name] for name in {one["event"] for one in events}}
    assert not by_event.get("failure") and all(one["same"] for one in by_event.get("comparison", []))
    (drained,), (killed,) = by_event["drained"], by_event["killed"]
    assert drained["is_idle"] and drained["outcomes"]["answered"] > 0
    assert drained["outcomes"].get("resent", 0) <= drained["cache_misses"]
    assert sum(killed["ends"].values()) == 16
    assert not any(name.startswith(("finished", "still")) for name in killed["ends"])
    assert killed["exit_status"] is not None
