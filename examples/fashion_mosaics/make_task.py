"""
Writes the questions of lmms-eval's task `fashion_mosaics`, which the package ships:

    python examples/fashion_mosaics/make_task.py

One question of each kind about each mosaic of official test items, the same for the same seed. An image is stored once
for all questions about it.
"""

import argparse
import io
import random
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, Features, Image, Value
from mosaics import DATASET_FOLDER, QUESTION_KINDS, draw_mosaic, load_items

from mqt_llava.evaluation import TASKS_FOLDER


def questions(count: int, seed: int, data_folder: str) -> list[dict]:
    rng, items = random.Random(seed), load_items("t10k", data_folder)
    rows = []
    for number in range(count):
        mosaic, png = draw_mosaic(rng, items), io.BytesIO()
        mosaic.image.convert("L").save(png, "PNG", optimize=True)
        image = {"path": f"mosaic_{number}.png", "bytes": png.getvalue()}
        for kind, ask in QUESTION_KINDS.items():
            rows += [
                {"image": image, "kind": kind, "question": question, "answer": answer}
                for question, answer in ask(rng, mosaic, 1)
            ]
    return rows


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mosaics", type=int, default=60)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--output", type=Path, default=TASKS_FOLDER / "fashion_mosaics" / "mosaics.parquet")
    args = parser.parse_args(argv)
    text = Value("string")
    features = Features({"image": Image(), "kind": text, "question": text, "answer": text})
    dataset = Dataset.from_list(questions(args.mosaics, args.seed, args.data_folder), features=features)
    pyarrow.parquet.write_table(dataset.data.table, args.output)  # to_parquet would repeat the images
    print(f"{len(dataset)} questions about {args.mosaics} mosaics in {args.output}")


if __name__ == "__main__":
    main()
