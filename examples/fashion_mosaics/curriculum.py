"""
How a model learns to look places up in a wide mosaic: a region grows from the top left as fast as it is learned.

Asked about all 64 places at once, or in sentences, a small model stays at guessing. So the curriculum begins with bare
cells, 2 x 2 of them, adds a row and a column whenever every row and column is known, and comes to sentences at last.
(To grow when most answers are right is too early: a place that was passed over stays unknown.)

What is right is measured on held-out mosaics. The curve of it, lines of JSON, is also the curriculum's memory: a run
that was stopped goes on with the region of its checkpoint.
"""

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback
from wide_mosaics import QUESTION_KINDS, SIDE, Mosaic, ask_cells, draw_mosaic, load_items, to_messages

from mqt_llava.files.atomic_file import write_atomically
from mqt_llava.files.json_lines import append_json_lines, read_json_lines


STAGES = ("cells", "places", "everything")
GROWS, LEARNED = 0.7, 0.85  # shares of right answers
# Questions about one held-out mosaic; lists and "most" have but one.
ASKED = {"position": 8, "row": 2, "column": 2, "list": 1, "presence": 5, "most": 1}


@dataclass
class Curriculum:
    """
    What is asked now.

    Args:
        stage: One of `STAGES`.
        region: Rows and columns that cells are of.
    """

    stage: str = STAGES[0]
    region: int = 2

    def advance(self, scores: dict[str, float]) -> None:
        """By the shares of right answers: a larger region, or the next stage."""
        if self.stage == "cells" and self.region < SIDE:
            self.region += scores["worst_line"] >= GROWS
        elif self.stage == "cells" and scores["cells"] >= LEARNED:
            self.stage = "places"
        elif self.stage == "places" and scores["position"] >= LEARNED:
            self.stage = "everything"


def ask_barely(rng: random.Random, mosaic: Mosaic, region: int) -> list[tuple[str, str]]:
    """Each cell of the region, about half of them with what stands between a question and its answer in a chat."""
    return [(place + rng.choice(["", "? ASSISTANT:"]), name) for place, name in ask_cells(rng, mosaic, region)]


def held_out(kind: str, region: int, data_folder: str, count: int = 32) -> list[dict]:
    """Records of one kind of question about the same few mosaics of the official test items."""
    rng, items, records = random.Random(1), load_items("t10k", data_folder), []
    for index in range(count):
        mosaic = draw_mosaic(rng, items)
        ask = random.Random(index)
        bare = kind == "cells"
        questions = ask_barely(ask, mosaic, region) if bare else QUESTION_KINDS[kind](ask, mosaic, ASKED[kind])
        if questions:
            records.append({"id": str(index), "bare": bare, "messages": to_messages(mosaic.image, questions)})
    return records


@torch.no_grad()
def judge(model, batch: dict, uncounted: torch.Tensor) -> torch.Tensor:
    """Of each token of right answers, but for what needs no looking: whether the model would have said it next."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch["labels"][:, 1:]
    said = model(**{**batch, "labels": None}).logits[:, :-1].argmax(-1)
    counted = (labels >= 0) & ~torch.isin(labels, uncounted.to(labels.device))
    return (said == labels)[counted].float()


def worst_line(is_right: torch.Tensor, records: list[dict]) -> float:
    """The share of right answers in the row or column where it is least."""
    lines = defaultdict(list)
    texts = [message["content"][-1]["text"] for record in records for message in record["messages"][::2]]
    for text, right in zip(texts, is_right.tolist(), strict=True):
        for line in text[:2]:  # a letter and a number
            lines[line].append(right)
    return min(sum(rights) / len(rights) for rights in lines.values())


class CurveCallback(TrainerCallback):
    """
    Measures, writes a line of the curve, and lets the curriculum advance.

    Args:
        collate: Makes a batch of records.
        uncounted: Ids of tokens that are no answers by themselves.
        every: Steps between two measurements.
    """

    def __init__(
        self, curriculum: Curriculum, path: Path, collate: Callable, uncounted: list[int], data_folder: str, every: int
    ):
        self.curriculum, self.path, self.collate, self.every = curriculum, path, collate, every
        self.uncounted, self.data_folder = torch.tensor(uncounted), data_folder
        self.minutes, self.began, self.batches = 0.0, time.monotonic(), {}

    def resume(self, step: int) -> None:
        """Takes up what the curve says of a step, and forgets what came after it."""
        rows = [row for row in read_json_lines(self.path)[0] if row["step"] <= step]
        if not rows and step >= self.every:
            raise FileNotFoundError(f"{self.path} says nothing of step {step}, so what was asked then is not known.")
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        if rows:
            self.curriculum.stage, self.curriculum.region = rows[-1]["stage"], rows[-1]["region"]
            self.minutes = rows[-1]["minutes"]

    def measure(self, model, kind: str) -> dict[str, float]:
        key = kind, self.curriculum.region
        if key not in self.batches:
            records = held_out(*key, self.data_folder)
            self.batches[key] = records, self.collate(records)
        records, batch = self.batches[key]
        is_right = judge(model, batch, self.uncounted)
        scores = {kind: round(is_right.mean().item(), 3)}
        if kind == "cells":
            scores["worst_line"] = round(worst_line(is_right, records), 3)
        return scores

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every:
            return
        kinds = ["cells"] if self.curriculum.stage == "cells" else ["cells", *QUESTION_KINDS]
        model.eval()
        scores = {}
        for kind in kinds:
            scores |= self.measure(model, kind)
        model.train()
        asked = self.curriculum.region
        self.curriculum.advance(scores)
        row = {
            "step": state.global_step,
            "minutes": round(self.minutes + (time.monotonic() - self.began) / 60, 1),
            "asked": asked,  # the region that the scores are about
            "stage": self.curriculum.stage,
            "region": self.curriculum.region,
            **scores,
        }
        append_json_lines(self.path, [row])
