"""
Which dtype, attention and compilation to choose on a CPU: first token and further tokens of an answer under each.

    python benchmarks/cpu_settings.py --size full --rounds 3 --output benchmarks/results/cpu_settings.json

MQT-LLaVA with random weights at the shapes of `first_token.py`: CLIP-L/14-336 and a decoder of about a billion
parameters; one prompt of an image and 64 text tokens, an answer of 33 tokens that does not end early. All settings
hold the same weights, in float32 or rounded to bfloat16. They take turns: each round runs every setting once at each
m, in random order, after untimed calls in which what is to be compiled is compiled. The first token is timed by
`StepClock` of `gpu_cases.py`, with the image's encoding in it; of further tokens each round gives the median. Figures
are medians over the rounds, ratios those of the medians to the first setting's, beside the least and greatest of one
round.
"""

import argparse
import copy
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from first_token import SIZES, Models
from gpu_cases import StepClock
from markdown_table import table
from training_step import hardware
from transformers import LogitsProcessorList


BUDGETS, NEW_TOKENS = (16, 256), 33
# Dtype, attention, whether the decoder is compiled, cache.
SETTINGS = {
    "float32, eager": (torch.float32, "eager", False, "dynamic"),
    "float32, sdpa": (torch.float32, "sdpa", False, "dynamic"),
    "bfloat16, eager": (torch.bfloat16, "eager", False, "dynamic"),
    "bfloat16, sdpa": (torch.bfloat16, "sdpa", False, "dynamic"),
    "bfloat16, sdpa, static cache": (torch.bfloat16, "sdpa", False, "static"),
    "bfloat16, sdpa, compiled": (torch.bfloat16, "sdpa", True, "dynamic"),
    "bfloat16, sdpa, compiled, static cache": (torch.bfloat16, "sdpa", True, "static"),
}


def build_settings(size: str) -> tuple[Models, dict]:
    """Inputs, and a model for each setting; those of one dtype share their weights."""
    models = {torch.float32: Models(replace(SIZES[size], dtype=torch.float32))}
    inputs = models[torch.float32]
    models = {torch.float32: inputs.mqt, torch.bfloat16: copy.deepcopy(inputs.mqt).to(torch.bfloat16)}
    settings = {}
    for name, (dtype, attention, is_compiled, _) in SETTINGS.items():
        memo = {id(parameter): parameter for parameter in models[dtype].parameters()}
        settings[name] = copy.deepcopy(models[dtype], memo)
        settings[name].set_attn_implementation(attention)
        if is_compiled:
            settings[name].model.language_model.compile(dynamic=True)
    return inputs, settings


def time_answer(models: Models, model, setting: str, m: int) -> dict[str, float]:
    """Seconds of the first token and of a further one."""
    dtype, _, _, cache = SETTINGS[setting]
    call = models.generate(model, m, 1, NEW_TOKENS, num_visual_tokens=m, cache_implementation=cache)
    call.keywords["pixel_values"] = call.keywords["pixel_values"].to(dtype)
    clock = StepClock("cpu")
    # On a CPU `generate` compiles nothing by itself: what is compiled is what was asked for.
    call(logits_processor=LogitsProcessorList([clock]), disable_compile=True)
    return clock.seconds()


def summarise(times: dict) -> list[dict]:
    """A row for each setting and m."""
    rows, first = [], next(iter(SETTINGS))
    for name in SETTINGS:
        for m in BUDGETS:
            row = {"setting": name, "m": m}
            for metric in ("first_token", "per_token"):
                ours, base = ([one[metric] for one in times[setting, m]] for setting in (name, first))
                by_round = [a / b for a, b in zip(base, ours)]
                row[metric] = {
                    "seconds": ours, "median": median(ours), "speed_up": median(base) / median(ours),
                    "speed_up_by_round": [min(by_round), max(by_round)],
                }  # fmt: skip
            rows.append(row)
    return rows


def report(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        cells = [row["setting"], str(row["m"])]
        for metric in ("first_token", "per_token"):
            one = row[metric]
            least, greatest = one["speed_up_by_round"]
            cells += [f"{1000 * one['median']:.0f}", f"{one['speed_up']:.2f} ({least:.2f} to {greatest:.2f})"]
        lines.append(" | ".join(cells))
    times = "times as fast (rounds)"
    return table(f"setting | m | first token, ms | {times} | further token, ms | {times}", lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    result = {"size": args.size, **hardware("cpu"), "seed": 0, "rounds": args.rounds, "new_tokens": NEW_TOKENS}
    inputs, models = build_settings(args.size)
    runs = [(name, m) for name in SETTINGS for m in BUDGETS]
    for name, m in runs:
        time_answer(inputs, models[name], name, m)
        print(f"Warmed up: {name}, m = {m}", flush=True)
    times = {run: [] for run in runs}
    for _ in range(args.rounds):
        for name, m in rng.sample(runs, len(runs)):
            times[name, m].append(time_answer(inputs, models[name], name, m))
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    result["rows"] = summarise(times)
    print(report(result["rows"]))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
