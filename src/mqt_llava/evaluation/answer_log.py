"""
The answers that a model has given, a line of JSON for each, written as soon as they are there.

lmms-eval hands a model all questions in one call and caches nothing before that call returns. What a killed evaluation
goes on from is therefore kept here.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files.json_lines import append_json_lines, read_json_lines


@dataclass(frozen=True)
class Answer:
    """
    Args:
        key: What it is an answer to, by `answer_key`.
        task: lmms-eval's name of the task.
        doc_id: Place of the question in the task.
        text: The answer itself.
        visual_tokens: Of each image of the prompt.
        text_tokens: The prompt's other tokens.
        new_tokens: The answer's tokens, with the one that ends it.
        seconds: An equal share of the time that its batch took, from messages to text.
    """

    key: str
    task: str
    doc_id: int
    text: str
    visual_tokens: list[int]
    text_tokens: int
    new_tokens: int
    seconds: float


def answer_key(*parts: Any) -> str:
    """The same for the same model, budget, question and settings, in any process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class AnswerLog:
    """
    Answers by their keys. Each process adds to a file of its own and starts with what all of them have left.

    Args:
        folder: Where the files are; without one, answers are only held in memory.
        rank: Number of this process.
    """

    def __init__(self, folder: str | os.PathLike | None = None, rank: int = 0):
        self.answers: dict[str, Answer] = {}
        self.path = None
        if folder is not None:
            self.path = Path(folder) / f"rank_{rank}.jsonl"
            for path in sorted(self.path.parent.glob("rank_*.jsonl")):
                self.answers.update((answer.key, answer) for answer in read_answers(path))

    def __contains__(self, key: str) -> bool:
        return key in self.answers

    def __getitem__(self, key: str) -> Answer:
        return self.answers[key]

    def add(self, answers: list[Answer]) -> None:
        self.answers.update((answer.key, answer) for answer in answers)
        if self.path is not None:
            append_json_lines(self.path, map(asdict, answers))


def read_answers(path: Path) -> list[Answer]:
    rows, _ = read_json_lines(path)
    return [Answer(**row) for row in rows]
