"""Sweeps without lmms-eval: what is run, what is not run again, and errors before anything is run."""

import sys
from dataclasses import replace

import pytest

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.evaluation.arguments import (
    check_batch_size,
    check_num_visual_tokens_or_auto,
    read_num_visual_tokens,
    sampling,
)
from mqt_llava.evaluation.finished_tasks import FinishedTask, FinishedTasks, weights_of
from mqt_llava.evaluation.sweep import check_tasks, main, parse_arguments, read_settings, read_tasks, sweep
from tests.builders.paths import CHECKPOINT


TINY = str(CHECKPOINT)
SETTINGS = {"pretrained": "here", "limit": None}


class Runner:
    """Counts what it is asked for, and stops where it is told to."""

    def __init__(self, error: BaseException | None = None, at: tuple | None = None):
        self.ran, self.error, self.at = [], error, at

    def __call__(self, task, m):
        self.ran.append((task, m))
        if (task, m) == self.at:
            raise self.error
        return FinishedTask(task, m, {task: {"accuracy": 0.5}}, 1, 1.0, 1.0, 1.0, None, 0.1)


PAIRS = [("a", 1), ("a", "auto"), ("b", 1), ("b", "auto")]


def test_a_stopped_sweep_goes_on_with_what_is_not_finished(tmp_path):
    stopped = Runner(KeyboardInterrupt(), at=("b", 1))
    with pytest.raises(KeyboardInterrupt):
        sweep(["a", "b"], [1, "auto"], FinishedTasks(tmp_path, SETTINGS), stopped)
    assert stopped.ran == PAIRS[:3]
    resumed, again = Runner(), Runner()
    assert sweep(["a", "b"], [1, "auto"], FinishedTasks(tmp_path, SETTINGS), resumed) == []
    assert resumed.ran == PAIRS[2:]
    sweep(["a", "b"], [1, "auto"], FinishedTasks(tmp_path, SETTINGS), again)
    assert again.ran == []
    sweep(["a", "b"], [1, 2], FinishedTasks(tmp_path, SETTINGS), again)  # one budget more
    assert again.ran == [("a", 2), ("b", 2)]


def test_a_pair_that_fails_does_not_keep_others_from_being_run(tmp_path, capfd):
    runner = Runner(RuntimeError("no such dataset"), at=("a", "auto"))
    finished = FinishedTasks(tmp_path, SETTINGS)
    assert sweep(["a", "b"], [1, "auto"], finished, runner) == [("a", "auto")]
    assert runner.ran == PAIRS and not finished.has("a", "auto")
    assert "no such dataset" in capfd.readouterr().err


def test_of_several_processes_an_error_ends_all(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError):
        sweep(["a"], [1], FinishedTasks(tmp_path, SETTINGS), Runner(RuntimeError(), at=("a", 1)))


def test_other_processes_than_the_first_write_nothing(tmp_path):
    finished = FinishedTasks(tmp_path, SETTINGS)
    assert sweep(["a"], [1], finished, lambda task, m: None) == [] and not finished.has("a", 1)


def test_a_pair_is_read_as_it_was_written(tmp_path):
    finished = FinishedTasks(tmp_path, SETTINGS)
    for m in (4, "auto", None):
        pair = replace(Runner()("group", m), metrics={"one": {"x": 0.1}, "two": {"y": 1}})
        finished.write(pair)
        assert finished.read("group", m) == pair


def test_a_folder_with_other_settings_is_refused(tmp_path):
    FinishedTasks(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="`limit` = None, but it is now 5.*another --output"):
        FinishedTasks(tmp_path, {**SETTINGS, "limit": 5})


def test_weights_that_have_changed_are_noticed(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"12")
    FinishedTasks(tmp_path / "sweep", {"weights": weights_of(str(checkpoint))})
    FinishedTasks(tmp_path / "sweep", {"weights": weights_of(str(checkpoint))})
    (checkpoint / "model.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="`weights`"):
        FinishedTasks(tmp_path / "sweep", {"weights": weights_of(str(checkpoint))})
    assert weights_of("some/id-on-the-hub") == {}


def test_paper_stands_for_the_tasks_of_its_eleven_benchmarks():
    tasks = read_tasks(["gqa", "paper", "mine"])
    assert tasks[0] == "gqa" and tasks[-1] == "mine"
    assert len(tasks) == len(set(tasks)) == 11  # ten of the paper, since both halves of MME are one, and mine


def test_unknown_tasks_are_refused_with_similar_ones():
    check_tasks(["gqa"], ["gqa", "pope"])
    with pytest.raises(ValueError, match="'popes', but must name.*Similar: pope, pope_adv"):
        check_tasks(["gqa", "popes"], ["gqa", "pope", "pope_adv"])


@pytest.mark.parametrize(
    "budget, error",
    [
        (0, "`num_visual_tokens` is 0, but must be an integer in 1..256"),
        (257, "257, but must be an integer in 1..256"),
        ("many", "'many', but must be an integer in 1..256 or \"auto\""),
        (True, "True, but must be"),
        (1.5, "1.5, but must be"),
    ],
)
def test_impossible_budgets_are_refused(budget, error):
    with pytest.raises((TypeError, ValueError), match=error):
        check_num_visual_tokens_or_auto(budget, MQTLlavaConfig())


def test_possible_budgets():
    config = MQTLlavaConfig()
    for text, budget in (("1", 1), ("256", 256), ("auto", "auto")):
        assert check_num_visual_tokens_or_auto(read_num_visual_tokens(text), config) == budget
    assert check_num_visual_tokens_or_auto(None, QueCCLlavaConfig()) is None
    with pytest.raises(ValueError, match="'auto', but a quecc_llava has a number of its own"):
        check_num_visual_tokens_or_auto("auto", QueCCLlavaConfig())


@pytest.mark.parametrize("value", ["auto", 0, "0", -1, 1.5, True, None])
def test_impossible_batch_sizes_are_refused(value):
    with pytest.raises(ValueError, match="`batch_size` is .*, but must be a positive integer"):
        check_batch_size(value)


def test_options_of_tasks_as_arguments_of_generate():
    assert sampling({"until": ["\n\n"], "temperature": 0.2, "top_p": 0, "do_sample": False}, 1024) == (
        {"max_new_tokens": 1024, "do_sample": False, "num_beams": 1},
        [],
    )
    assert sampling({"until": "ASSISTANT:", "max_new_tokens": 16, "num_beams": 3}, 1024) == (
        {"max_new_tokens": 16, "do_sample": False, "num_beams": 3},
        ["ASSISTANT:"],
    )
    assert sampling({"until": None, "do_sample": True, "temperature": 0.7, "top_p": None}, 8) == (
        {"max_new_tokens": 8, "do_sample": True, "num_beams": 1, "temperature": 0.7},
        [],
    )


def test_the_command_refuses_budgets_before_it_loads_anything(tmp_path):
    command = ["--pretrained", TINY, "--tasks", "paper", "--output", str(tmp_path / "out"), "--num-visual-tokens"]
    with pytest.raises(ValueError, match="17, but must be an integer in 1..16"):
        main([*command, "1", "17"])
    assert not (tmp_path / "out").exists()


def test_without_lmms_eval_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.evaluator", None)
    with pytest.raises(ImportError, match=r'pip install "mqt_llava\[eval\]"'):
        main(["--pretrained", TINY, "--tasks", "gqa", "--num-visual-tokens", "1", "--output", str(tmp_path)])


def test_a_finished_sweep_reports_without_lmms_eval(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    command = ["--pretrained", TINY, "--tasks", "gqa", "--num-visual-tokens", "1", "4", "--output", str(tmp_path)]
    sweep(["gqa"], [1, 4], FinishedTasks(tmp_path, read_settings(parse_arguments(command))), Runner())
    assert main(command) == 0
    assert "| gqa accuracy | mqt-llava-tiny | measured | 0.5 | 0.5 |" in capsys.readouterr().out
    assert {"results.csv", "results.json", "results.png"} <= {path.name for path in tmp_path.iterdir()}
