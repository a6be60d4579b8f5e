"""
Which dtype, attention and compilation to choose on a CPU: first token and further tokens of an answer under each.

    python benchmarks/cpu_settings.py --size full --rounds 3 --output benchmarks/results/cpu_settings.json

MQT-LLaVA as in `compared_models.py`, with CLIP-L/14-336 and a decoder of about a billion parameters; one prompt, an
answer of 33 tokens. All settings hold the same weights, in float32 or rounded to bfloat16. They take turns, at each m,
after untimed calls in which what is to be compiled is compiled. The first token is timed by `StepClock` of
`gpu_cases.py`, with the image's encoding in it; of further tokens each round gives the median. Ratios are to the first
setting.
"""

import copy
import random
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from compared_models import SIZES, Models
from gpu_cases import StepClock
from harness import SEED, begin, command_line, compare, save, spread, table, take_turns
from transformers import LogitsProcessorList


VISUAL_TOKENS, NEW_TOKENS = (16, 256), 33
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
    inputs = Models(replace(SIZES[size], dtype=torch.float32))
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
    call = models.generate(model, m, 1, max_new_tokens=NEW_TOKENS, num_visual_tokens=m, cache_implementation=cache)
    call.keywords["pixel_values"] = call.keywords["pixel_values"].to(dtype)
    clock = StepClock("cpu")
    # On a CPU `generate` compiles nothing by itself: what is compiled is what was asked for.
    call(logits_processor=LogitsProcessorList([clock]), disable_compile=True)
    return clock.seconds()


def summarise(times: dict) -> list[dict]:
    """A row for each setting and m."""
    rows, first = [], next(iter(SETTINGS))
    for name in SETTINGS:
        for m in VISUAL_TOKENS:
            row = {"setting": name, "m": m}
            for metric in ("first_token", "per_token"):
                ours, base = ([one[metric] for one in times[setting, m]] for setting in (name, first))
                row[metric] = {"seconds": ours, "median": median(ours), **compare("speed_up", base, ours)}
            rows.append(row)
    return rows


def report(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        cells = [row["setting"], str(row["m"])]
        for metric in ("first_token", "per_token"):
            cells += [f"{1000 * row[metric]['median']:.0f}", spread(row[metric], "speed_up", 2)]
        lines.append(" | ".join(cells))
    times = "times as fast (rounds)"
    return table(f"setting | m | first token, ms | {times} | further token, ms | {times}", lines)


@torch.no_grad()
def main() -> None:
    sizes = {"choices": ("small", "full"), "default": "small"}
    args = command_line(__doc__, size=sizes, rounds={"default": 5}, threads={}).parse_args()
    result = begin(args, new_tokens=NEW_TOKENS)
    inputs, models = build_settings(args.size)
    calls = {
        (name, m): partial(time_answer, inputs, models[name], name, m) for name in SETTINGS for m in VISUAL_TOKENS
    }
    for (name, m), call in calls.items():
        call()
        print(f"Warmed up: {name}, m = {m}", flush=True)
    result["rows"] = summarise(take_turns(calls, args.rounds, random.Random(SEED)))
    print(report(result["rows"]))
    save(result, args.output, report(result["rows"]))


if __name__ == "__main__":
    main()
