"""Four pictures with questions about them, as a dataset of the form that TRL and this package train on."""

import json
from pathlib import Path

import datasets


REPOSITORY = Path(__file__).parents[2]


def load_pictures() -> datasets.Dataset:
    """One row for each picture, with the questions about it as one conversation."""
    folder = REPOSITORY / "examples" / "images"
    rows = []
    for name, pairs in json.loads((folder / "questions.json").read_text()).items():
        messages = []
        for question, answer in pairs:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"id": name, "messages": messages, "images": [str(folder / name)]})
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
