"""
Tasks of lmms-eval at several numbers of visual tokens, in one table and one figure:

    python -m mqt_llava.evaluation.sweep --pretrained model_cards/mqt-llava-tiny --tasks fashion_mosaics \
        --num-visual-tokens 1 2 4 8 16 --output runs/sweep

`--tasks paper` are the eleven benchmarks of the MQT-LLaVA paper. On several GPUs: `accelerate launch -m
mqt_llava.evaluation.sweep ...`. The same command again goes on where an earlier one was stopped: pairs of task and
number that are finished are not run again, nor are questions asked again whose answers are in the log.
"""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig

import mqt_llava  # noqa: F401  registers the models

from ..plotting import save_figure
from .answer_log import AnswerLog
from .arguments import check_batch_size, check_num_visual_tokens_or_auto, read_num_visual_tokens
from .benchmarks import PAPER
from .figure import draw
from .finished_tasks import FinishedTask, FinishedTasks, summarize, weights_of
from .plugin import TASKS_FOLDER
from .report import tabulate, to_markdown, write_table


if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from .lmms_eval_model import MQTLlava


def sweep(
    tasks: list[str],
    num_visual_tokens: list,
    finished: FinishedTasks,
    run: Callable[[str, int | str], FinishedTask | None],
) -> list:
    """
    Runs what is not finished, task by task.

    Args:
        run: Evaluates a pair, and returns it, or None in all processes but the first.

    Returns:
        The pairs that failed. They are told on stderr, and do not keep others from being run; but of several processes
        those where nothing failed would wait for the one where something did, so there an error ends the sweep.
    """
    failed = []
    open_pairs = [(task, m) for task in tasks for m in num_visual_tokens if not finished.has(task, m)]
    for task, m in open_pairs:
        try:
            pair = run(task, m)
        except Exception:
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise
            traceback.print_exc()
            failed.append((task, m))
            continue
        if pair is not None:
            finished.write(pair)
    return failed


class Evaluator:
    """lmms-eval with one model, which is loaded once for all pairs, and not before a pair is to be run."""

    def __init__(self, args: argparse.Namespace, finished: FinishedTasks):
        self.args, self.finished = args, finished
        self.manager = task_manager(args.include_path)
        self.model: MQTLlava | None = None

    def __call__(self, task: str, m: int | str) -> FinishedTask | None:
        from lmms_eval.evaluator import simple_evaluate

        folder = self.finished.answers_folder(task, m)
        model = self.load()
        model.set_num_visual_tokens(m, str(folder))
        results = simple_evaluate(
            model=model,
            tasks=[task],
            limit=self.args.limit,
            task_manager=self.manager,
            log_samples=True,  # of which the intervals are made
            bootstrap_iters=0,
            # Where some tasks leave files for test servers.
            cli_args=argparse.Namespace(output_path=str(folder), process_with_media=False),
        )
        if results is None:  # in all processes but the first
            return None
        return summarize(task, m, results, list(AnswerLog(folder).answers.values()), model.config)

    def load(self) -> "MQTLlava":
        from .lmms_eval_model import MQTLlava

        class KeptMQTLlava(MQTLlava):
            def clean(self) -> None:
                """lmms-eval drops a model after each evaluation; this one goes on to the next pair."""

        names = ("pretrained", "revision", "dtype", "batch_size", "device", "attn_implementation")
        self.model = self.model or KeptMQTLlava(**{name: getattr(self.args, name) for name in names})
        return self.model


def task_manager(include_path: str | None) -> "TaskManager":
    """
    lmms-eval's tasks, the shipped one, and those of a folder.

    Raises:
        ImportError: lmms-eval is missing.
    """
    try:
        import lmms_eval.evaluator  # noqa: F401  first, since it makes the log quiet
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(f'A sweep needs lmms-eval: pip install "mqt_llava[eval]" ({error})') from error
    return TaskManager("WARNING", [str(TASKS_FOLDER)] + [include_path] * bool(include_path), model_name="mqt_llava")


def read_tasks(names: list[str]) -> list[str]:
    """The tasks, each once; `paper` stands for those of its eleven benchmarks."""
    paper = [benchmark.task for benchmark in PAPER]
    return list(dict.fromkeys(task for name in names for task in (paper if name == "paper" else [name])))


def check_tasks(tasks: list[str], known: list[str]) -> None:
    """
    Raises:
        ValueError: lmms-eval does not know one of them.
    """
    for task in tasks:
        if task not in known:
            similar = difflib.get_close_matches(task, known, n=5, cutoff=0.5)
            raise ValueError(
                f"`--tasks` names {task!r}, but must name tasks of lmms-eval (`lmms-eval --tasks list`), of "
                f"--include-path, or `paper`. Similar: {', '.join(similar) or 'none'}."
            )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True, help="folder or Hub id of a checkpoint of this package")
    parser.add_argument("--tasks", nargs="+", required=True, help="of lmms-eval; `paper` for the paper's eleven")
    parser.add_argument(
        "--num-visual-tokens",
        nargs="+",
        required=True,
        type=read_num_visual_tokens,
        help="visual tokens; `auto` for adaptive",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for table, figure and what a resumption needs"
    )
    parser.add_argument("--batch-size", type=check_batch_size, default=1)
    parser.add_argument("--limit", type=int, help="only so many questions of each task, to try things out")
    parser.add_argument("--include-path", help="folder with tasks of your own")
    parser.add_argument("--device", help="by default, accelerate's")
    parser.add_argument("--dtype", default="auto", help="of the weights: auto, bfloat16, ...")
    parser.add_argument("--attn-implementation", help="sdpa, flash_attention_2, eager, ...")
    parser.add_argument("--revision", default="main", help="of a checkpoint on the Hub")
    return parser.parse_args(argv)


def read_settings(args: argparse.Namespace) -> dict:
    """What scores depend on besides task and m."""
    try:
        lmms_eval = version("lmms_eval")
    except PackageNotFoundError:
        lmms_eval = None
    settings = {name: getattr(args, name) for name in ("pretrained", "revision", "dtype", "limit")}
    return {**settings, "lmms_eval": lmms_eval, "weights": weights_of(args.pretrained)}


def main(argv: list[str] | None = None) -> int:
    """Returns how many pairs failed."""
    args = parse_arguments(argv)
    config = AutoConfig.from_pretrained(args.pretrained, revision=args.revision)
    num_visual_tokens = list(dict.fromkeys(check_num_visual_tokens_or_auto(m, config) for m in args.num_visual_tokens))
    tasks = read_tasks(args.tasks)
    finished = FinishedTasks(args.output, read_settings(args))
    failed = []
    if not all(finished.has(task, m) for task in tasks for m in num_visual_tokens):
        run = Evaluator(args, finished)
        check_tasks(tasks, run.manager.all_tasks)
        failed = sweep(tasks, num_visual_tokens, finished, run)
    if int(os.environ.get("RANK", 0)) == 0:
        report([finished.read(task, m) for task in tasks for m in num_visual_tokens if finished.has(task, m)], args)
    for task, m in failed:
        print(f"{task} at m = {m} failed; the same command tries it again.", file=sys.stderr)
    return len(failed)


def report(pairs: list[FinishedTask], args: argparse.Namespace) -> None:
    if not pairs:
        return
    rows = tabulate(pairs, Path(args.pretrained).name)
    write_table(rows, args.output)
    save_figure(draw(rows), args.output / "results.png")
    print(to_markdown(rows))


if __name__ == "__main__":
    sys.exit(min(main(), 1))
