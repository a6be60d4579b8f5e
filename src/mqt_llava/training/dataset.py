"""Conversations to train on, with bad records passed over."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from torch.utils.data import Dataset

from ..models.processing_compressed_llava import load_rgb
from .event_counts import EventCounts
from .records import RecordError, read_record


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

FEWEST_JUDGED = 100  # a share of fewer records than these says nothing


class TooManyBadRecords(RuntimeError):
    """More records cannot be used than the run allows."""


class ConversationDataset(Dataset):
    """
    Conversations about images, from rows in LLaVA's format or with `messages` and `images`.

    A row that cannot be used (no answer, an unknown role, a missing or corrupt image) is logged with its id and
    counted, and the next one takes its place.

    Args:
        rows: A list of dicts or a `datasets.Dataset`; see [`read_record`].
        image_folder: Where relative image paths start.
        max_bad_share: The share of bad rows, of those that were asked for, at which to give up.

    Raises:
        ValueError: There are no rows, or they are of neither format.
        TooManyBadRecords: On access, when the share of bad rows has passed the limit.

    ```python
    >>> dataset = ConversationDataset.from_json("llava_v1_5_mix665k.json", image_folder="data")
    >>> dataset[0].keys()
    dict_keys(['id', 'messages', 'images'])
    ```"""

    def __init__(
        self,
        rows: "list[dict] | datasets.Dataset",
        image_folder: str | Path | None = None,
        max_bad_share: float = 0.01,
    ):
        if len(rows) == 0:
            raise ValueError("`rows` is empty: there is nothing to train on.")
        columns = rows[0].keys() if isinstance(rows, list) else rows.column_names
        if not {"conversations", "messages"} & set(columns):
            raise ValueError(
                f"`rows` has {sorted(map(str, columns))}, but must have either LLaVA's `conversations` (and `image`) "
                "or `messages` (and `images`)."
            )
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"`max_bad_share` is {max_bad_share}, but must be within 0..1.")
        self.rows, self.max_bad_share = rows, max_bad_share
        self.image_folder = None if image_folder is None else Path(image_folder)
        if self.image_folder is not None and not self.image_folder.is_dir():
            raise ValueError(f"`image_folder` is {image_folder}, which is no folder.")
        self.ids = _unique_ids(rows)
        self.event_counts = EventCounts("records", "bad_records")

    @classmethod
    def from_json(
        cls, path: str | Path, image_folder: str | Path | None = None, **kwargs: Any
    ) -> "ConversationDataset":
        """
        Reads a JSON list, or JSON lines, of records.

        Args:
            path: The file.
            image_folder: Where image paths start; the file's own folder by default.
            kwargs: As for the class.
        """
        path = Path(path)
        text = path.read_text(encoding="utf-8")
        try:
            rows = (
                [json.loads(line) for line in text.split("\n") if line.strip()]
                if path.suffix == ".jsonl"
                else json.loads(text)
            )
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}.") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} must hold a list of records, each a JSON object.")
        return cls(rows, path.parent if image_folder is None else image_folder, **kwargs)

    @cached_property
    def sizes(self) -> list[tuple[bool, int]]:
        """Of each row, whether it shows an image, and about how many words it holds. No image is decoded."""
        return [(shows_image, len(str(turns).split())) for turns, shows_image in self._texts()]

    def _texts(self) -> Iterator[tuple[Any, bool]]:
        if isinstance(self.rows, list):
            for row in self.rows:
                turns = row.get("conversations", row.get("messages"))
                yield turns, bool(row.get("images", row.get("image"))) or _holds_images(turns)
            return
        import pyarrow  # comes with datasets

        columns = self.rows.column_names
        turns = "conversations" if "conversations" in columns else "messages"
        images = next((name for name in ("images", "image") if name in columns), None)
        for table in self.rows.with_format("arrow").iter(1000):
            texts, shows_image = table[turns].to_pylist(), [False] * len(table)
            if images is not None:
                column = table[images].combine_chunks()
                is_list = pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)
                numbers = column.value_lengths() if is_list else column.is_valid()
                shows_image = [bool(number.as_py()) for number in numbers]
            yield from zip(texts, shows_image)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        """
        A record: its unique `id`, its chat `messages` and its `images`, loaded and in RGB.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no row {index} among {len(self)}.")
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            self.event_counts.add("records")
            try:
                record = read_record(self.rows[candidate], self.image_folder)
                images = [_load(image, number) for number, image in enumerate(record.images)]
                return {"id": self.ids[candidate], "messages": record.messages, "images": images}
            except Exception as error:  # image decoders raise anything
                self._pass_over(candidate, error)
        raise TooManyBadRecords(f"None of the {len(self)} records can be used.")

    def _pass_over(self, index: int, error: Exception) -> None:
        self.event_counts.add("bad_records")
        logger.warning("Record %r (row %d) is passed over: %s.", self.ids[index], index, str(error).rstrip("."))
        bad, records = self.event_counts.total("bad_records"), self.event_counts.total("records")
        if bad > self.max_bad_share * max(records, FEWEST_JUDGED):
            raise TooManyBadRecords(
                f"{bad} of the {records} records that were asked for cannot be used, more than "
                f"`max_bad_share` ({self.max_bad_share}) allows. The last one is {self.ids[index]!r} (row {index}): "
                f"{error}"
            ) from error


def _unique_ids(rows: "list[dict] | datasets.Dataset") -> list[str]:
    """An id for each row: LLaVA's own files name several conversations about one image alike."""
    if isinstance(rows, list):
        names = [row.get("id") for row in rows]
    else:
        names = rows["id"] if "id" in rows.column_names else [None] * len(rows)
    ids: dict[str, int] = {}
    seen: Counter[str] = Counter()
    repeated = 0
    for index, name in enumerate(names):
        unique = name = f"row {index}" if name is None else str(name)
        while unique in ids:
            seen[name] += 1
            unique = f"{name} ({seen[name] + 1})"
        repeated += unique != name
        ids[unique] = index
    if repeated:
        logger.info("%d of %d records have the id of an earlier one; their ids are numbered.", repeated, len(ids))
    return list(ids)


def _holds_images(turns: Any) -> bool:
    """Whether images stand in the messages themselves. Malformed ones are told apart on access."""
    blocks = [block for turn in turns or [] if isinstance(turn, dict) for block in turn.get("content") or []]
    return any(isinstance(block, dict) and block.get("type") == "image" for block in blocks)


def _load(image: Any, number: int) -> Image:
    if isinstance(image, Path) and not image.is_file():
        raise RecordError(f"its image {image} does not exist")
    return load_rgb(image, number)
