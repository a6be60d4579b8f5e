"""
lmms-eval itself, with the embedded checkpoint and the shipped task: `nox -s lmms_eval`.

Nothing here needs a network; lmms-eval is told so.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import pytest
import torch

from tests.builders.paths import CHECKPOINT, REPOSITORY
from tests.builders.scripts import load_script


pytest.importorskip("lmms_eval", reason="needs lmms-eval: nox -s lmms_eval")
pytestmark = pytest.mark.lmms_eval

from datasets import load_dataset  # noqa: E402
from transformers import AutoProcessor  # noqa: E402

from mqt_llava import MQTLlavaForConditionalGeneration  # noqa: E402
from mqt_llava.evaluation import PAPER, TASKS_FOLDER  # noqa: E402
from mqt_llava.evaluation.answer_log import read_answers  # noqa: E402
from mqt_llava.evaluation.sweep import main  # noqa: E402


evaluate = load_script("examples/fashion_mosaics/evaluate.py")
Mosaic = load_script("examples/fashion_mosaics/mosaics.py").Mosaic
TINY = str(CHECKPOINT)
BUDGETS = (1, 2, 4, 8, 16)
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}


def command(output: Path, *flags) -> list[str]:
    flags = ["--pretrained", TINY, "--tasks", "fashion_mosaics", "--output", output, *flags]
    return list(map(str, flags))


def run(*arguments) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-20000:]
    return ended.stdout


def answers_in(output: Path, m) -> list:
    files = (output / "answers" / "fashion_mosaics" / str(m)).glob("*.jsonl")
    return [answer for path in files for answer in read_answers(path)]


def metrics_in(output: Path, m) -> dict:
    return json.loads((output / "pairs" / "fashion_mosaics" / f"{m}.json").read_text())["metrics"]["fashion_mosaics"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The folder of a whole sweep over five budgets."""
    output = tmp_path_factory.mktemp("swept")
    run("mqt_llava.evaluation.sweep", *command(output, "--num-visual-tokens", *BUDGETS, "--batch-size", 64))
    return output


@pytest.fixture(scope="module")
def questions():
    file = TASKS_FOLDER / "fashion_mosaics" / "mosaics.parquet"
    return load_dataset("parquet", data_files=str(file), split="train")


@pytest.mark.parametrize("m", BUDGETS)
def test_scores_equal_the_projects_own_of_the_same_answers(swept, questions, m):
    answers = answers_in(swept, m)
    assert sorted(answer.doc_id for answer in answers) == list(range(len(questions)))
    scores = {"accuracy": []}
    for answer in answers:
        question = questions[answer.doc_id]
        value = evaluate.score(question["kind"], answer.text, question["answer"])
        scores["accuracy"].append(value)
        scores.setdefault(question["kind"], []).append(value)
    own = {name: mean(values) for name, values in scores.items()}
    assert len(own) == 7 and own == pytest.approx(metrics_in(swept, m), abs=1e-12)


def test_answers_equal_those_of_the_projects_own_evaluation(swept, questions):
    model = MQTLlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(TINY)
    for kind in ("position", "row", "presence", "most"):
        rows = [row for row in questions if row["kind"] == kind]
        mosaics = [Mosaic(row["image"].convert("RGB"), []) for row in rows]
        asked = [(index, (row["question"], row["answer"])) for index, row in enumerate(rows)]
        scores = evaluate.accuracies(model, processor, mosaics, kind, asked, list(BUDGETS))
        for m in BUDGETS:  # batches differ, and with them the last digits of logits
            assert mean(scores[m]) == pytest.approx(metrics_in(swept, m)[kind], abs=0.02), (kind, m)


def test_the_table_and_the_figure_of_the_sweep(swept):
    rows = json.loads((swept / "results.json").read_text())
    accuracy = {row["m"]: row for row in rows if row["metric"] == "accuracy"}
    assert list(accuracy) == list(BUDGETS) and {row["source"] for row in rows} == {"measured"}
    assert [row["visual_tokens"] for row in accuracy.values()] == list(BUDGETS)
    assert accuracy[1]["score"] < 0.65 and accuracy[16]["score"] > 0.9  # what the tokens buy
    flops = [row["flops"] for row in accuracy.values()]
    assert all(row["seconds"] > 0 for row in rows) and flops[0] < flops[4] < 2 * flops[0]
    assert (swept / "results.png").stat().st_size > 10_000


def test_a_sweep_killed_in_the_middle_goes_on_without_recomputing(tmp_path, monkeypatch):
    batch_size, limit = 4, 120
    flags = command(tmp_path, "--num-visual-tokens", 4, 16, "--batch-size", batch_size, "--limit", limit)
    process = subprocess.Popen(
        [sys.executable, "-m", "mqt_llava.evaluation.sweep", *flags],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "answers" / "fashion_mosaics" / "16" / "rank_0.jsonl"
    try:
        deadline = time.monotonic() + 1800  # however busy the machine is
        while not (log.exists() and log.read_bytes().count(b"\n") >= 2 * batch_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()  # SIGKILL
        process.wait()
    left, finished = log.read_bytes(), tmp_path / "pairs" / "fashion_mosaics"
    answered = left.count(b"\n")
    assert 2 * batch_size <= answered < limit
    assert [path.name for path in finished.iterdir()] == ["4.json"]
    finished_at = (finished / "4.json").stat().st_mtime_ns
    with open(log, "ab") as file:  # as if a line had been torn, too
        file.write(b'{"key": "0')

    calls = []
    generate = MQTLlavaForConditionalGeneration.generate

    def count(self, *args, **kwargs):
        calls.append((len(kwargs["input_ids"]), kwargs["num_visual_tokens"]))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(MQTLlavaForConditionalGeneration, "generate", count)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    assert main(flags) == 0
    assert len(calls) == math.ceil((limit - answered) / batch_size)
    assert sum(rows for rows, _ in calls) == limit - answered and {m for _, m in calls} == {16}
    assert log.read_bytes().startswith(left) and (finished / "4.json").stat().st_mtime_ns == finished_at
    assert sorted(answer.doc_id for answer in answers_in(tmp_path, 16)) == list(range(limit))
    pair = json.loads((finished / "16.json").read_text())
    assert pair["questions"] == limit and pair["seconds"] == pytest.approx(
        sum(answer.seconds for answer in answers_in(tmp_path, 16))
    )

    calls.clear()
    assert main(flags) == 0 and calls == []


def test_lmms_evals_own_command(tmp_path, swept):
    model_args = f"pretrained={TINY},num_visual_tokens=4,answers={tmp_path / 'answers'}"
    flags = ["--model", "mqt_llava", "--model_args", model_args, "--tasks", "fashion_mosaics", "--batch_size", 32]
    flags += ["--include_path", TASKS_FOLDER, "--output_path", tmp_path / "out", "--limit", 40]
    texts = {answer.doc_id: answer.text for answer in answers_in(swept, 4)}
    for _ in range(2):  # the second time from the log
        assert "fashion_mosaics" in run("lmms_eval", *flags)
        answers = read_answers(tmp_path / "answers" / "rank_0.jsonl")
        assert {answer.doc_id: answer.text for answer in answers} == {doc: texts[doc] for doc in range(40)}
        assert len(answers) == 40
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*_results.json")]
    figures = [result["results"]["fashion_mosaics"]["accuracy,none"] for result in results]
    assert len(set(figures)) == 1 and 0.7 < figures[0] <= 1


def test_the_commands_of_the_page_run_when_pasted(tmp_path):
    page = (REPOSITORY / "docs" / "evaluation.md").read_text()
    blocks = re.findall(r"(?:^    .+\n)+", page, re.MULTILINE)
    blocks = [block for block in blocks if "fashion_mosaics" in block and "mqt-llava-tiny" in block]
    assert len(blocks) == 2
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in blocks:
        script = block.strip().replace("runs/sweep", str(tmp_path / "sweep")) + " --limit 3"
        result = subprocess.run(
            ["bash", "-c", script], cwd=REPOSITORY, env={**ENVIRONMENT, "PATH": path}, capture_output=True, text=True
        )
        assert result.returncode == 0 and "accuracy" in result.stdout, result.stderr


def test_two_processes_share_the_questions(tmp_path, swept):
    flags = command(tmp_path, "--num-visual-tokens", 4, "--batch-size", 16, "--limit", 41)
    launcher = ["torch.distributed.run", "--nproc_per_node", 2, "--standalone"]
    run(*launcher, "-m", "mqt_llava.evaluation.sweep", *flags)
    counts = {path.name: len(read_answers(path)) for path in (tmp_path / "answers").rglob("*.jsonl")}
    assert counts == {"rank_0.jsonl": 21, "rank_1.jsonl": 20}
    texts = {answer.doc_id: answer.text for answer in answers_in(swept, 4)}
    assert {answer.doc_id: answer.text for answer in answers_in(tmp_path, 4)} == {doc: texts[doc] for doc in range(41)}


def test_the_papers_benchmarks_are_tasks_of_lmms_eval_with_these_metrics():
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import load_yaml_config

    manager = TaskManager("ERROR")
    for benchmark in PAPER:
        assert manager.task_index[benchmark.task]["type"] == "task"
        config = load_yaml_config(manager.task_index[benchmark.task]["yaml_path"], mode="simple")
        assert benchmark.metric in [entry["metric"] for entry in config["metric_list"]]
        assert config["output_type"] == "generate_until"


def test_unknown_tasks_end_the_command_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(MQTLlavaForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(ValueError, match="'fashion_mosaic', but must name.*Similar: fashion_mosaics"):
        main(
            ["--pretrained", TINY, "--tasks", "fashion_mosaic", "--num-visual-tokens", "1", "--output", str(tmp_path)]
        )
