"""
Accuracy with the decoder's weights quantised, by number of visual tokens, on mosaics of the official test items:

    nox -s torchao -- examples/fashion_mosaics/quantized.py --output benchmarks/results/quantized.json

The vision tower, the query transformer and the head stay in bfloat16: an argument of each configuration names them,
and without it bitsandbytes and torchao quantise the image path too. Methods whose package is missing are left out;
with `python` in place of `nox -s torchao --` that is torchao's.
"""

import argparse
import importlib.metadata
import json
import logging
import random
from importlib.util import find_spec
from pathlib import Path

import torch
from evaluate import accuracies
from mosaics import DATASET_FOLDER, QUESTION_KINDS, draw_mosaic, load_items
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, TorchAoConfig

import mqt_llava  # noqa: F401


NOT_QUANTIZED = ["model.vision_tower", "model.resampler", "lm_head"]
METHODS = {  # and the package that each needs
    "float32": None,
    "bfloat16": None,
    "bitsandbytes int8": "bitsandbytes",
    "bitsandbytes nf4": "bitsandbytes",
    "torchao int8": "torchao",
    "torchao int4": "torchao",
}


def quantization_config(method: str, device: str = "cpu") -> BitsAndBytesConfig | TorchAoConfig | None:
    """What `from_pretrained(quantization_config=...)` takes, None for a method that does not quantise."""
    if method == "bitsandbytes int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTIZED)
    if method == "bitsandbytes nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=NOT_QUANTIZED,
        )
    if METHODS[method] is None:
        return None
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if method == "torchao int8":
        weights = Int8WeightOnlyConfig()
    elif device == "cpu":  # the kernels for int4 are for GPUs; this rounds weights alike and multiplies in bfloat16
        weights = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    else:
        weights = Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d")
    return TorchAoConfig(weights, modules_to_not_convert=NOT_QUANTIZED)


def load(checkpoint: str, method: str, device: str = "cpu"):
    dtype = torch.float32 if method == "float32" else torch.bfloat16
    config = quantization_config(method, device)
    return AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=dtype, quantization_config=config, device_map=device
    ).eval()


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/mqt-llava-tiny")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--num-visual-tokens", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--kinds", nargs="+", choices=QUESTION_KINDS, default=["position", "row", "presence"])
    parser.add_argument("--mosaics", type=int, default=300, help="held-out mosaics, with one question of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of its float16 at every product
    processor = AutoProcessor.from_pretrained(args.model)
    rng, items = random.Random(args.seed), load_items("t10k", args.data_folder)
    mosaics = [draw_mosaic(rng, items) for _ in range(args.mosaics)]
    questions = {
        kind: [(index, pair) for index, mosaic in enumerate(mosaics) for pair in QUESTION_KINDS[kind](rng, mosaic, 1)]
        for kind in args.kinds
    }
    results = {}
    print(f"| decoder's weights | question | {' | '.join(f'm = {budget}' for budget in args.num_visual_tokens)} |")
    print(f"|---|---|{'---|' * len(args.num_visual_tokens)}")
    for method in args.methods:
        if METHODS[method] and find_spec(METHODS[method]) is None:
            print(f"| {method} | left out: {METHODS[method]} is not installed |{' |' * len(args.num_visual_tokens)}")
            continue
        model, results[method] = load(args.model, method, args.device), {}
        for kind in args.kinds:
            scores = accuracies(model, processor, mosaics, kind, questions[kind], args.num_visual_tokens)
            means = {budget: round(sum(values) / len(values), 4) for budget, values in scores.items()}
            results[method][kind] = means
            print(f"| {method} | {kind} | {' | '.join(f'{mean:.3f}' for mean in means.values())} |", flush=True)
    if args.output:
        packages = ["torch", "transformers", *{METHODS[method] for method in results} - {None}]
        versions = {name: importlib.metadata.version(name) for name in sorted(packages)}
        arguments = {name: value for name, value in vars(args).items() if name not in ("output", "data_folder")}
        report = {"arguments": arguments, "versions": versions, "accuracy": results}
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
