"""
Time to the first token, image path and adaptive budgets of MQT-LLaVA on a CPU, against LLaVA with 576 tokens:

    python benchmarks/first_token.py --size full --output benchmarks/results/first_token.json

Models and prompts are those of `compared_models.py`, with a decoder of about a billion parameters. The weights are in
float32 or bfloat16, whichever multiplies the decoder's matrices faster here. Everything runs in one process and takes
turns. One untimed run before warms up and counts FLOPs on the real call. Three sections:

1. First token: `generate` with one new token, from pixels, at each m; and with 16 new tokens. The FLOPs ratio is the
   speed-up that is promised, and the share is how much of it the clock shows. Further tokens are read from memory
   rather than computed, so FLOPs promise more there than there is to gain.
2. Image path: `get_image_features` at m, against a forward of transformers' whole CLIPVisionModel and nothing else.
3. Adaptive budget: `generate` at levels 16, 64, 256 with a confidence that is never reached, which climbs to 256,
   against plain m = 256; and with one that always is, which stops at 16, against plain m = 16. The prediction is the
   ratio of what both count in FLOPs; the tokens that go through the decoder are counted beside it.
"""

import json
import random
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from compared_models import LLAVA_TOKENS, SIZES, TEXT_AFTER, TEXT_BEFORE, Models, Size, flop_counter
from harness import SEED, begin, command_line, compare, save, spread, table, take_turns, time_call

from mqt_llava import AdaptiveBudget


VISUAL_TOKENS, IMAGE_VISUAL_TOKENS, LEVELS = (1, 16, 64, 256), (16, 256), [16, 64, 256]
# Batch size and new tokens. After the first token all decoders do the same.
CASES = ((1, 1), (1, 16), (4, 1))


def choose_dtype(args: Namespace) -> tuple[Size, dict]:
    """
    The size that is asked for, in the dtype that is asked for or in the one in which a prompt for LLaVA passes a
    matrix of the decoder's MLP faster; and what a result says of that.
    """
    size, seconds = SIZES[args.size], {}
    width, mlp_width = size.text[:2]
    for dtype in (torch.float32, torch.bfloat16):
        states, weight = torch.randn(LLAVA_TOKENS, width, dtype=dtype), torch.randn(mlp_width, width, dtype=dtype)
        times = [time_call(partial(torch.nn.functional.linear, states, weight)) for _ in range(6)]
        seconds[dtype] = median(times[1:])
    dtype = getattr(torch, args.dtype) if args.dtype else min(seconds, key=seconds.get)
    noted = {"dtype": str(dtype), "matrix_product_seconds": {str(dtype): one for dtype, one in seconds.items()}}
    return replace(size, dtype=dtype), noted | {"rounds": args.rounds or size.rounds}


def measure(models: Models, functions: dict[str, Callable], rounds: int, rng: random.Random) -> dict[str, dict]:
    """FLOPs, seconds and, for each prompt, tokens through the decoder, of each function."""
    figures, lengths = {}, []

    def note_length(module, args, kwargs):
        lengths.append(kwargs.get("input_ids", kwargs.get("inputs_embeds")).shape[1])

    hook = models.mqt.model.language_model.register_forward_pre_hook(note_length, with_kwargs=True)
    for name, function in functions.items():
        with flop_counter() as counter:
            function()
        figures[name] = {"flops": counter.get_total_flops(), "decoder_tokens": sum(lengths)}
        lengths.clear()
    hook.remove()
    calls = {name: partial(time_call, function) for name, function in functions.items()}
    for name, seconds in take_turns(calls, rounds, rng).items():
        figures[name] |= {"seconds": seconds, "median": median(seconds)}
    return figures


def ratios(numerator: dict, denominator: dict) -> dict:
    """Time and FLOPs of one over those of the other, and how far the time is from what the FLOPs predict."""
    times = compare("time_ratio", numerator["seconds"], denominator["seconds"])
    flops_ratio = numerator["flops"] / denominator["flops"]
    return {**times, "flops_ratio": flops_ratio, "time_over_prediction": times["time_ratio"] / flops_ratio}


def first_token(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch, new_tokens in CASES:
        functions = {"llava": models.generate(models.llava, LLAVA_TOKENS, batch, max_new_tokens=new_tokens)}
        for m in VISUAL_TOKENS:
            functions[m] = models.generate(models.mqt, m, batch, max_new_tokens=new_tokens, num_visual_tokens=m)
        figures = measure(models, functions, rounds, rng)
        for m in VISUAL_TOKENS:
            row = {"batch": batch, "new_tokens": new_tokens, "m": m, **ratios(figures["llava"], figures[m])}
            row["share"] = row.pop("time_over_prediction")
            rows.append({**row, "mqt": figures[m], "llava": figures["llava"]})
    return rows


def image_path(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch in sorted({batch for batch, _ in CASES}):
        pixels, vision_tower = models.pixels[:batch], models.llava.model.vision_tower
        functions = {"vision_tower": torch.no_grad()(partial(vision_tower, pixels))}
        for m in IMAGE_VISUAL_TOKENS:
            functions[m] = torch.no_grad()(partial(models.mqt.get_image_features, pixels, [m] * batch))
        figures = measure(models, functions, 2 * rounds, rng)
        for m in IMAGE_VISUAL_TOKENS:
            row = {"batch": batch, "m": m, **ratios(figures[m], figures["vision_tower"])}
            rows.append({**row, "image_path": figures[m], "vision_tower": figures["vision_tower"]})
    return rows


def adaptive(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch, new_tokens in CASES:
        generate = partial(models.generate, models.mqt, LEVELS[0], batch, max_new_tokens=new_tokens)
        functions = {}
        for confidence, m in ((1.0, LEVELS[-1]), (0.0, LEVELS[0])):
            budget = AdaptiveBudget(levels=LEVELS, confidence=confidence)
            functions["adaptive", m] = generate(num_visual_tokens=budget)
            functions["plain", m] = generate(num_visual_tokens=m)
        figures = measure(models, functions, rounds, rng)
        for m in (LEVELS[-1], LEVELS[0]):
            row = {"batch": batch, "new_tokens": new_tokens, "ends_at": m}
            row |= ratios(figures["adaptive", m], figures["plain", m])
            rows.append({**row, "adaptive": figures["adaptive", m], "plain": figures["plain", m]})
    return rows


SECTIONS = {"first_token": first_token, "image_path": image_path, "adaptive": adaptive}


def report(section: str, rows: list[dict]) -> str:
    """A section as Markdown."""
    if section == "first_token":
        head = "batch | new tokens | m | LLaVA / MQT-LLaVA, s | time ratio (rounds) | FLOPs ratio | share"
        lines = [
            f"{row['batch']} | {row['new_tokens']} | {row['m']} | {row['llava']['median']:.3f} / "
            f"{row['mqt']['median']:.3f} | {spread(row, 'time_ratio')} | {row['flops_ratio']:.3f} | {row['share']:.2f}"
            for row in rows
        ]
    elif section == "image_path":
        head = "batch | m | image path / bare vision tower, s | time ratio (rounds) | FLOPs ratio"
        lines = [
            f"{row['batch']} | {row['m']} | {row['image_path']['median']:.3f} / {row['vision_tower']['median']:.3f} "
            f"| {spread(row, 'time_ratio')} | {row['flops_ratio']:.3f}"
            for row in rows
        ]
    else:
        head = (
            "batch | new tokens | ends at | adaptive / plain, s | decoder tokens | time ratio (rounds) "
            "| predicted | time over prediction"
        )
        lines = [
            f"{row['batch']} | {row['new_tokens']} | {row['ends_at']} | {row['adaptive']['median']:.3f} / "
            f"{row['plain']['median']:.3f} | {row['adaptive']['decoder_tokens']} / {row['plain']['decoder_tokens']} "
            f"| {spread(row, 'time_ratio')} | {row['flops_ratio']:.3f} | {row['time_over_prediction']:.3f}"
            for row in rows
        ]
    return table(head, lines)


def main() -> None:
    parser = command_line(
        __doc__,
        size={"choices": ("small", "full"), "default": "small"},
        rounds={"help": "by default what the size says; twice as many of images"},
        dtype={"help": "by default the faster one"},
        threads={},
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    args = parser.parse_args()
    result, rng = begin(args, text_tokens=[TEXT_BEFORE, TEXT_AFTER]), random.Random(SEED)
    size, noted = choose_dtype(args)
    result |= noted
    print(json.dumps(result), flush=True)
    models, tables = Models(size), []
    for section in args.sections:
        result[section] = SECTIONS[section](models, result["rounds"], rng)
        tables.append(report(section, result[section]))
        print(tables[-1], flush=True)
        save(result, args.output, "\n\n".join(tables))


if __name__ == "__main__":
    main()
