"""
Looks at held-out mosaics at several levels of visual tokens, and keeps what the model answers and how sure it is:

    OMP_NUM_THREADS=1 python examples/fashion_mosaics/collect_looks.py --output runs/looks

About each mosaic one question of every kind is asked, and answered greedily at each level; its image is encoded once.
Mosaics are made in turns of either half of the official test items. Each file holds some of them; files that are there
already are not made again, so a run that was stopped goes on.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from mosaics import DATASET_FOLDER
from testbeds import TESTBEDS
from transformers import AutoProcessor
from transformers.utils import logging

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.models.adaptive_budget import checkpoint_digest


NUM_BEST = 20  # tokens whose log-probabilities a server returns
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Looks:
    """
    What a model says to one question of each kind about each mosaic, at each level.

    Args:
        settings: How they were made: `levels`, `kinds`, `checkpoint` and more.
        texts: The answers, `(mosaics, kinds, levels)`.
        num_tokens: Of an answer, its end included, `(mosaics, kinds, levels)`.
        logprobs: Of the likeliest tokens at the first places of an answer, descending, without temperature: float32
            `(mosaics, kinds, levels, places, 20)`. What stands behind the end of an answer says nothing.
        ids: Of these tokens, int32.
        states: The decoder's last hidden state at the first place, and its mean over the places of the answer: float16
            `(mosaics, kinds, levels, 2, hidden size)`.
    """

    settings: dict
    texts: np.ndarray
    num_tokens: np.ndarray
    logprobs: np.ndarray
    ids: np.ndarray
    states: np.ndarray


ARRAYS = ("texts", "num_tokens", "logprobs", "ids", "states")


def read_looks(folder: Path) -> Looks:
    """Of all files in a folder, in their order."""
    files = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    if not files:
        raise FileNotFoundError(f"{folder} holds no .npz files. Make them with collect_looks.py.")
    settings = json.loads(str(files[0]["settings"]))
    return Looks(settings, *(np.concatenate([file[name] for file in files]) for name in ARRAYS))


def ask_about_mosaics(testbed: ModuleType, rng: random.Random, folder: str) -> Iterator[list[list[dict]]]:
    """A user's message of each kind about one mosaic after the other, of which each kind can be asked."""
    items = testbed.load_items("t10k", folder)
    halves = [{name: photos[half::2] for name, photos in items.items()} for half in (0, 1)]
    number = 0
    while True:
        mosaic = testbed.draw_mosaic(rng, halves[number % 2])
        pairs = [ask(rng, mosaic, 1) for ask in testbed.QUESTION_KINDS.values()]
        if all(pairs):
            yield [testbed.to_messages(mosaic.image, pair)[:1] for pair in pairs]
            number += 1


@torch.inference_mode()
def look(model, processor, chats: list[list[dict]], encoded, settings: dict) -> tuple[dict, object]:
    """
    Args:
        chats: Of one kind, so that the answers are about as long.
        encoded: Their images; `None` encodes them.

    Returns:
        The arrays of [`Looks`], `(chats, levels, ...)`, and the encoded images.
    """
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    pixel_values = inputs.pop("pixel_values")
    encoded = model.get_image_features(pixel_values) if encoded is None else encoded
    eos, places = torch.tensor(model.generation_config.eos_token_id).flatten(), settings["places"]
    found = {name: [] for name in ARRAYS}
    for level in settings["levels"]:
        outputs = model.generate(
            **inputs,
            mm_encoder_outputs={"image": encoded},
            num_visual_tokens=level,
            max_new_tokens=settings["max_new_tokens"],
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            output_hidden_states=True,
        )
        answers = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        is_end = torch.isin(answers, eos)
        num_tokens = torch.where(is_end.any(1), is_end.long().argmax(1) + 1, answers.shape[1])
        steps = min(places, len(outputs.logits))
        best = torch.stack(outputs.logits[:steps], dim=1).float().log_softmax(-1).topk(NUM_BEST)
        states = torch.stack([step[-1][:, -1] for step in outputs.hidden_states[:steps]], dim=1)
        is_answer = (torch.arange(steps) < num_tokens[:, None])[..., None]
        means = (states * is_answer).sum(1) / is_answer.sum(1)
        padding = (0, 0, 0, places - steps)
        found["texts"].append(np.array(processor.batch_decode(answers, skip_special_tokens=True)))
        found["num_tokens"].append(num_tokens.numpy())
        found["logprobs"].append(torch.nn.functional.pad(best.values, padding).numpy())
        found["ids"].append(torch.nn.functional.pad(best.indices.int(), padding).numpy())
        found["states"].append(torch.stack([states[:, 0], means], dim=1).half().numpy())
    return {name: np.stack(arrays, axis=1) for name, arrays in found.items()}, encoded


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--testbed", choices=TESTBEDS, default="mosaics")
    parser.add_argument("--levels", type=int, nargs="+", help="visual tokens; 1, 2, 4, ... and M by default")
    parser.add_argument("--mosaics", type=int, default=2000)
    parser.add_argument("--places", type=int, default=16, help="first tokens of an answer that are kept")
    parser.add_argument("--max-new-tokens", type=int, help="5 for each item of a mosaic by default")
    parser.add_argument("--batch-size", type=int, default=100, help="mosaics at once, and in a file")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--output", type=Path, default=Path("runs/looks"), help="folder for the files")
    args = parser.parse_args(argv)

    model = MQTLlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    testbed, most = TESTBEDS[args.testbed], model.config.max_visual_tokens
    if args.max_new_tokens is None:
        args.max_new_tokens = 5 * testbed.SIDE**2
    levels = args.levels or [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    if levels[-1] != most:
        parser.error(f"--levels must end with {most}, M, whose answers the others are compared with.")
    settings = {
        "checkpoint": checkpoint_digest(model),
        "testbed": args.testbed,
        "kinds": list(testbed.QUESTION_KINDS),
        "grain": [testbed.GRAIN.get(kind, "fine") for kind in testbed.QUESTION_KINDS],
        "levels": levels,
        "places": args.places,
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    chats = ask_about_mosaics(testbed, random.Random(args.seed), args.data_folder)
    for first in logging.tqdm(range(0, args.mosaics, args.batch_size)):
        batch = [next(chats) for _ in range(min(args.batch_size, args.mosaics - first))]
        path = args.output / f"{first:06}.npz"
        if path.exists():
            if json.loads(str(np.load(path)["settings"])) != settings:
                parser.error(f"{path} was made with other settings: take another --output.")
            continue
        kinds, encoded = [], None
        for of_kind in zip(*batch):
            arrays, encoded = look(model, processor, list(of_kind), encoded, settings)
            kinds.append(arrays)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        with partial.open("wb") as file:
            arrays = {name: np.stack([kind[name] for kind in kinds], axis=1) for name in ARRAYS}
            np.savez_compressed(file, settings=json.dumps(settings), **arrays)
        partial.replace(path)


if __name__ == "__main__":
    main()
