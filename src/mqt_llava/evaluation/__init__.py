"""
Evaluation with lmms-eval: the model as a plugin (`lmms-eval --model mqt_llava`), and budget sweeps
(`python -m mqt_llava.evaluation.sweep`). `TASKS_FOLDER` is for lmms-eval's `--include_path`.
"""

from .answer_log import Answer, AnswerLog
from .benchmarks import PAPER, Benchmark
from .plugin import TASKS_FOLDER


__all__ = ["PAPER", "TASKS_FOLDER", "Answer", "AnswerLog", "Benchmark"]
