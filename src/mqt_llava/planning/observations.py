"""What an evaluation has found: the score of a model of some size with some number of visual tokens."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Observation(NamedTuple):
    """
    Args:
        params_billion: Parameters of the decoder, in billions.
        tokens: Visual tokens of an image.
        score: Share of what can be reached, 0..1.
    """

    params_billion: float
    tokens: float
    score: float


def check_observations(table: Iterable) -> list[Observation]:
    """
    Rows of (billions of parameters, visual tokens, score), as tuples or as dicts with the names of [`Observation`].

    Raises:
        ValueError: A row is something else, or a figure is out of range.
    """
    checked = []
    for number, row in enumerate(table, start=1):
        try:
            values = [row[name] for name in Observation._fields] if isinstance(row, Mapping) else row
            observation = Observation(*map(float, values))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Row {number} of `table` is {row!r}, but must be three numbers: {', '.join(Observation._fields)}."
            ) from error
        for name in ("params_billion", "tokens"):
            if not 0 < getattr(observation, name) < math.inf:
                raise ValueError(
                    f"Row {number} of `table` has {name} {getattr(observation, name)}, but it must be above 0."
                )
        if not 0 <= observation.score <= 1:
            raise ValueError(
                f"Row {number} of `table` has score {observation.score}, but it must be a share in 0..1, not per cent."
            )
        checked.append(observation)
    return checked


def read_observations(path: str | Path) -> list[Observation]:
    """
    Reads what a sweep has written: a `.csv` with a header, a `.json` list of objects, or a `.jsonl` with an object in
    each line. The columns `params_billion`, `tokens` and `score` are taken, others ignored.

    Raises:
        ValueError: Another kind of file, or rows that are no observations.
    """
    path = Path(path)
    text = path.read_text()
    if path.suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    elif path.suffix == ".json":
        rows = json.loads(text)
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        raise ValueError(f"`path` is {str(path)!r}, but must end in .csv, .json or .jsonl.")
    return check_observations(rows)
