"""
Time to the first token, image path and adaptive budgets of MQT-LLaVA on a CPU, against LLaVA with 576 tokens:

    python benchmarks/first_token.py --size full --output benchmarks/results/first_token.json

Both models have random weights, a vision tower of the same shape, and one decoder of about a billion parameters that
they share. LLaVA runs all layers of its vision tower, as transformers does, MQT-LLaVA those up to feature layer -2.
The weights are in float32 or bfloat16, whichever multiplies the decoder's matrices faster here. A prompt is text, an
image and text again, 64 text tokens in all; prompts of a batch are equally long, and no answer ends early.

What is compared runs in one process, in rounds: each round runs everything once, in random order, so that all meet the
same load. Times are medians over the rounds; ratios are those of the medians, and the least and greatest ratio of one
round show the noise. One untimed run before warms up and counts FLOPs: matrix products, convolutions and attention,
with causal attention in full (FlopCounterMode on the real call). Three sections:

1. First token: `generate` with one new token, from pixels, at each m; and with 16 new tokens. The FLOPs ratio is the
   speed-up that is promised, and the share is how much of it the clock shows. Further tokens are read from memory
   rather than computed, so FLOPs promise more there than there is to gain.
2. Image path: `get_image_features` at m, against a forward of transformers' whole CLIPVisionModel and nothing else.
3. Adaptive budget: `generate` at levels 16, 64, 256 with a confidence that is never reached, which climbs to 256,
   against plain m = 256; and with one that always is, which stops at 16, against plain m = 16. The prediction is the
   ratio of what both count in FLOPs; the tokens that go through the decoder are counted beside it.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode
from training_step import ATTENTION, LLAVA_TOKENS, Size, build_models, hardware

from mqt_llava import AdaptiveBudget


BUDGETS, LEVELS, IMAGE_BUDGETS = (1, 16, 64, 256), [16, 64, 256], (16, 256)
TEXT_BEFORE, TEXT_AFTER = 40, 24  # a system prompt, a question
# Batch size and new tokens. After the first token all decoders do the same.
CASES = ((1, 1), (1, 16), (4, 1))
SIZES = {
    "small": Size((128, 512, 4, 4), (256, 688, 4, 4, 4), 1024, False, torch.float32, 4, draws=0, rounds=3),
    # CLIP-L/14-336; Llama-3.2-1B with an untied head and Llama-2's vocabulary.
    "full": Size((1024, 4096, 24, 16), (2048, 8192, 16, 32, 8), 32064, False, torch.float32, 4, draws=0, rounds=5),
}


class Models:
    """The two models around one decoder, and calls of them."""

    def __init__(self, size: Size):
        self.size = size
        self.mqt, self.llava = (model.eval() for model in build_models(size, "cpu"))
        for model in (self.mqt, self.llava):
            model.generation_config.update(do_sample=False, eos_token_id=None, pad_token_id=0)
        self.generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(size.batch_size, 3, 336, 336, generator=self.generator)
        self.pixels = pixels.to(size.dtype)
        self.text = torch.randint(1, size.vocabulary - 1, (size.batch_size, TEXT_BEFORE + TEXT_AFTER))

    def generate(self, model, tokens: int, batch: int, new_tokens: int, **kwargs) -> Callable:
        """A call of `generate` with a prompt for `tokens` visual tokens."""
        before, after = self.text[:batch].split([TEXT_BEFORE, TEXT_AFTER], dim=1)
        image = before.new_full((batch, tokens), self.size.vocabulary - 1)
        ids = torch.cat([before, image, after], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": self.pixels[:batch]}
        return partial(model.generate, **inputs, max_new_tokens=new_tokens, **kwargs)


def fastest_dtype(size: Size) -> tuple[torch.dtype, dict[str, float]]:
    """In which dtype a prompt for LLaVA passes a matrix of the decoder's MLP faster, and the seconds of each."""
    width, mlp_width = size.text[:2]
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = torch.randn(LLAVA_TOKENS, width, dtype=dtype), torch.randn(mlp_width, width, dtype=dtype)
        times = [time_call(partial(torch.nn.functional.linear, states, weight)) for _ in range(6)]
        seconds[dtype] = median(times[1:])
    return min(seconds, key=seconds.get), {str(dtype): one for dtype, one in seconds.items()}


def time_call(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return round(time.perf_counter() - start, 5)


def measure(models: Models, functions: dict[str, Callable], rounds: int, rng: random.Random) -> dict[str, dict]:
    """FLOPs, seconds and, for each prompt, tokens through the decoder, of each function."""
    figures, lengths = {}, []

    def note_length(module, args, kwargs):
        lengths.append(kwargs.get("input_ids", kwargs.get("inputs_embeds")).shape[1])

    hook = models.mqt.model.language_model.register_forward_pre_hook(note_length, with_kwargs=True)
    for name, function in functions.items():
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            function()
        figures[name] = {"flops": counter.get_total_flops(), "decoder_tokens": sum(lengths), "seconds": []}
        lengths.clear()
    hook.remove()
    for _ in range(rounds):
        for name in rng.sample(list(functions), len(functions)):
            figures[name]["seconds"].append(time_call(functions[name]))
    for one in figures.values():
        one["median"] = median(one["seconds"])
    return figures


def ratios(numerator: dict, denominator: dict) -> dict:
    """Time and FLOPs of one over those of the other, and the extremes of the rounds."""
    rounds = [a / b for a, b in zip(numerator["seconds"], denominator["seconds"])]
    return {
        "time_ratio": round(numerator["median"] / denominator["median"], 4),
        "time_ratio_by_round": [round(min(rounds), 4), round(max(rounds), 4)],
        "flops_ratio": round(numerator["flops"] / denominator["flops"], 4),
    }


def first_token(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch, new_tokens in CASES:
        functions = {"llava": models.generate(models.llava, LLAVA_TOKENS, batch, new_tokens)}
        for m in BUDGETS:
            functions[m] = models.generate(models.mqt, m, batch, new_tokens, num_visual_tokens=m)
        figures = measure(models, functions, rounds, rng)
        for m in BUDGETS:
            row = {"batch": batch, "new_tokens": new_tokens, "m": m, **ratios(figures["llava"], figures[m])}
            row["share"] = round(row["time_ratio"] / row["flops_ratio"], 4)
            rows.append({**row, "mqt": figures[m], "llava": figures["llava"]})
    return rows


def image_path(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch in sorted({batch for batch, _ in CASES}):
        pixels, vision_tower = models.pixels[:batch], models.llava.model.vision_tower
        functions = {"vision_tower": torch.no_grad()(partial(vision_tower, pixels))}
        for m in IMAGE_BUDGETS:
            functions[m] = torch.no_grad()(partial(models.mqt.get_image_features, pixels, [m] * batch))
        figures = measure(models, functions, 2 * rounds, rng)
        for m in IMAGE_BUDGETS:
            row = {"batch": batch, "m": m, **ratios(figures[m], figures["vision_tower"])}
            rows.append({**row, "image_path": figures[m], "vision_tower": figures["vision_tower"]})
    return rows


def adaptive(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch, new_tokens in CASES:
        generate = partial(models.generate, models.mqt, LEVELS[0], batch, new_tokens)
        functions = {}
        for confidence, m in ((1.0, LEVELS[-1]), (0.0, LEVELS[0])):
            budget = AdaptiveBudget(levels=LEVELS, confidence=confidence)
            functions["adaptive", m] = generate(num_visual_tokens=budget)
            functions["plain", m] = generate(num_visual_tokens=m)
        figures = measure(models, functions, rounds, rng)
        for m in (LEVELS[-1], LEVELS[0]):
            row = {"batch": batch, "new_tokens": new_tokens, "ends_at": m}
            row |= ratios(figures["adaptive", m], figures["plain", m])
            row["time_over_prediction"] = round(row["time_ratio"] / row["flops_ratio"], 4)
            rows.append({**row, "adaptive": figures["adaptive", m], "plain": figures["plain", m]})
    return rows


SECTIONS = {"first_token": first_token, "image_path": image_path, "adaptive": adaptive}


def table(section: str, rows: list[dict]) -> str:
    """A section as Markdown."""

    def spread(row: dict) -> str:
        return f"{row['time_ratio']:.3f} ({row['time_ratio_by_round'][0]:.3f} to {row['time_ratio_by_round'][1]:.3f})"

    if section == "first_token":
        head = "batch | new tokens | m | LLaVA / MQT-LLaVA, s | time ratio (rounds) | FLOPs ratio | share"
        cells = [
            f"{row['batch']} | {row['new_tokens']} | {row['m']} | {row['llava']['median']:.3f} / "
            f"{row['mqt']['median']:.3f} | {spread(row)} | {row['flops_ratio']:.3f} | {row['share']:.2f}"
            for row in rows
        ]
    elif section == "image_path":
        head = "batch | m | image path / bare vision tower, s | time ratio (rounds) | FLOPs ratio"
        cells = [
            f"{row['batch']} | {row['m']} | {row['image_path']['median']:.3f} / {row['vision_tower']['median']:.3f} "
            f"| {spread(row)} | {row['flops_ratio']:.3f}"
            for row in rows
        ]
    else:
        head = (
            "batch | new tokens | ends at | adaptive / plain, s | decoder tokens | time ratio (rounds) "
            "| predicted | time over prediction"
        )
        cells = [
            f"{row['batch']} | {row['new_tokens']} | {row['ends_at']} | {row['adaptive']['median']:.3f} / "
            f"{row['plain']['median']:.3f} | {row['adaptive']['decoder_tokens']} / {row['plain']['decoder_tokens']} "
            f"| {spread(row)} | {row['flops_ratio']:.3f} | {row['time_over_prediction']:.3f}"
            for row in rows
        ]
    return "\n".join(f"| {line} |" for line in (head, " | ".join(["---"] * (head.count("|") + 1)), *cells)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--repeats", type=int, help="rounds; by default what the size says. Twice as many of images")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="by default the faster one")
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="JSON file for the figures, written after each section")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(args.threads or cores)
    torch.manual_seed(0)
    size, rng = SIZES[args.size], random.Random(0)
    faster, seconds = fastest_dtype(size)
    size = replace(size, dtype=getattr(torch, args.dtype) if args.dtype else faster)
    rounds = args.repeats or size.rounds

    result = {
        "size": args.size, **hardware("cpu"), "threads": torch.get_num_threads(), "seed": 0, "rounds": rounds,
        "dtype": str(size.dtype), "matrix_product_seconds": seconds, "text_tokens": [TEXT_BEFORE, TEXT_AFTER],
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    models = Models(size)
    for section in args.sections:
        result[section] = SECTIONS[section](models, rounds, rng)
        result["load_average_after"] = round(os.getloadavg()[0], 2)
        print(table(section, result[section]), flush=True)
        if args.output:
            args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
