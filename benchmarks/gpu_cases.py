"""
What `gpu.py` measures: models on the device, cases in order of importance, and a case's calls timed side by side.

A case is one section at one batch size and kind of attention, compiled or not. Its contenders are MQT-LLaVA at each of
its m and LLaVA, which take turns.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import compared_models
import torch
from compared_models import LLAVA_TOKENS, SIZES, Size
from first_token import VISUAL_TOKENS
from harness import synchronize, take_turns
from torch._dynamo.utils import counters
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling


ATTENTIONS = ("sdpa", "flash_attention_3", "flash_attention_2", "eager")
ANSWER_VISUAL_TOKENS = (16, 256)
# What each section times. Of an answer that is the first token, a further one (the median) and all of it.
METRICS = {
    "image_path": ("image_path",),
    "prefill": ("prefill",),
    "first_token": ("first_token",),
    "generate": ("first_token", "per_token", "generate"),
}


@dataclass(frozen=True)
class Scale:
    """
    Args:
        batches: Batch sizes; the second is the one that targets are for.
        new_tokens: Of a whole answer.
        matmul_sides, copy_bytes: With which the device's rates are measured.
        share: Of the time, where several sizes are measured.
        guess: Seconds that a contender may take, plain and compiled, before one was measured.
    """

    shapes: Size
    batches: tuple[int, ...]
    new_tokens: int
    matmul_sides: tuple[int, ...]
    copy_bytes: int
    share: int
    guess: tuple[float, float]


LARGE = {"batches": (1, 8, 32), "new_tokens": 64, "matmul_sides": (4096, 8192, 16384), "copy_bytes": 2**31}
TINY = Size((32, 64, 2, 2), (64, 128, 2, 4, 2), 256, False, torch.float32, 2, rounds=2)
SCALES = {
    "small": Scale(TINY, (1, 2), 4, (256,), 2**22, share=1, guess=(2, 8)),
    "1b": Scale(replace(SIZES["full"], dtype=torch.bfloat16, batch_size=32), **LARGE, share=1, guess=(3, 20)),
    "7b": Scale(replace(SIZES["7b"], batch_size=32), **LARGE, share=3, guess=(3, 45)),
}


@dataclass(frozen=True)
class Case:
    section: str
    batch: int
    attention: str
    compiled: bool
    visual_tokens: tuple[int, ...]


def headlines(scale: Scale) -> list[Case]:
    """What the targets are for."""
    return [
        Case("prefill", scale.batches[1], "sdpa", True, (256,)),
        Case("first_token", scale.batches[1], "sdpa", False, VISUAL_TOKENS),
        Case("generate", scale.batches[0], "sdpa", True, (16,)),
    ]


def all_cases(scale: Scale) -> list[Case]:
    """
    The most important first; then what is short; and last what is compiled, which takes longest: each m for itself.

    `generate` compiles no more than the steps after the first token, so a first token alone has no compiled case.
    """
    batches = dict.fromkeys((scale.batches[1], *scale.batches))

    def grid(section: str, compiled: bool, choices: list[tuple[int, ...]]) -> list[Case]:
        return [
            Case(section, batch, attention, compiled, visual_tokens)
            for attention in ATTENTIONS
            for batch in batches
            for visual_tokens in choices
        ]

    each, each_of_answers = ([(m,) for m in reversed(numbers)] for numbers in (VISUAL_TOKENS, ANSWER_VISUAL_TOKENS))
    plain = [
        case for section in ("first_token", "prefill", "image_path") for case in grid(section, False, [VISUAL_TOKENS])
    ]
    plain += grid("generate", False, each_of_answers)
    compiled = grid("prefill", True, each) + grid("generate", True, each_of_answers) + grid("image_path", True, each)
    return list(dict.fromkeys(headlines(scale) + plain + compiled))


class StepClock(LogitsProcessor):
    """When each token of an answer was known. It leaves the logits alone, and waits for nothing until it is read."""

    def __init__(self, device: str):
        self.device, self.marks = device, [self.now(device)]

    @staticmethod
    def now(device: str) -> torch.cuda.Event | float:
        if device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.marks.append(self.now(self.device))
        return scores

    def seconds(self) -> dict[str, float]:
        """Until the first token, and of a further one."""
        pairs = zip(self.marks, self.marks[1:])
        if self.device == "cuda":
            first, *others = [before.elapsed_time(after) / 1000 for before, after in pairs]
        else:
            first, *others = [after - before for before, after in pairs]
        return {"first_token": first, "per_token": median(others)}


class Models(compared_models.Models):
    """The two models, by contender."""

    def __init__(self, scale: Scale, device: str):
        super().__init__(scale.shapes, device)
        self.scale = scale

    def of(self, contender: int | str):
        return self.llava if contender == "llava" else self.mqt

    def set_attention(self, attention: str) -> None:
        """
        Raises:
            ImportError: The package with its kernels is not installed.
        """
        for model in (self.mqt, self.llava):
            model.set_attn_implementation(attention)
            # `generate` makes static caches as long as the longest so far; here each m has its own length.
            model._previous_max_cache_length = -1

    def prompt(self, contender: int | str, batch: int) -> torch.Tensor:
        return super().prompt(LLAVA_TOKENS if contender == "llava" else contender, batch)

    def weight_bytes(self, contender: int | str) -> int:
        return sum(parameter.nbytes for parameter in self.of(contender).parameters())


def compile_call(function: Callable, case: Case, device: str) -> Callable:
    """
    Nothing may fall back to uncompiled code unnoticed, so breaks in the graph are errors. But flash attention's own
    kernels are no part of a graph. On a CPU only the tracing is rehearsed.
    """
    if not case.compiled:
        return function
    is_whole = not case.attention.startswith("flash")
    backend = "inductor" if device == "cuda" else "eager"
    return torch.compile(function, fullgraph=is_whole, dynamic=False, backend=backend)


def encode_images(models: Models, case: Case, contender: int | str, device: str) -> Callable:
    model = models.of(contender)
    counts = [] if contender == "llava" else [[contender] * case.batch]
    encode = compile_call(model.get_image_features, case, device)
    return partial(encode, models.pixels[: case.batch], *counts)


def read_prompt(models: Models, case: Case, contender: int | str, device: str) -> Callable:
    """Prompts without padding need no attention mask."""
    visual_tokens = encode_images(models, replace(case, compiled=False), contender, device)().pooler_output
    return partial(
        compile_call(models.of(contender), case, device),
        input_ids=models.prompt(contender, case.batch),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(visual_tokens))},
        logits_to_keep=1,
        use_cache=True,
    )


def answer(models: Models, case: Case, contender: int | str, device: str, **kwargs) -> Callable:
    if contender != "llava":
        kwargs["num_visual_tokens"] = contender
    return models.generate(models.of(contender), contender, case.batch, **kwargs)


def first_of_answer(models: Models, case: Case, contender: int | str, device: str) -> Callable:
    return answer(models, case, contender, device, max_new_tokens=1)


def whole_answer(models: Models, case: Case, contender: int | str, device: str) -> Callable:
    kwargs = {"cache_implementation": "static", "disable_compile": not case.compiled}
    if case.compiled and device == "cpu":
        kwargs["compile_config"] = CompileConfig(backend="eager", mode=None)
        kwargs["compile_config"]._compile_all_devices = True  # transformers' own switch for tests
    generate = answer(models, case, contender, device, max_new_tokens=models.scale.new_tokens, **kwargs)

    def run() -> StepClock:
        clock = StepClock(device)
        generate(logits_processor=LogitsProcessorList([clock]))
        return clock

    return run


CALLS = {
    "image_path": encode_images,
    "prefill": read_prompt,
    "first_token": first_of_answer,
    "generate": whole_answer,
}


def time_case(function: Callable, section: str, device: str) -> dict[str, float]:
    """Seconds of each metric of the section, and the bytes of GPU memory taken at most, besides what was before."""
    before = 0
    synchronize(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    result = function()
    synchronize(device)
    figures = {section: time.perf_counter() - start}
    if isinstance(result, StepClock):
        figures |= result.seconds()
    return {**figures, "taken_bytes": torch.cuda.max_memory_allocated() - before if device == "cuda" else 0}


@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)  # rather than uncompiled code that passes for compiled
@torch.no_grad()
def measure(models: Models, case: Case, rounds: int, rng: random.Random) -> dict[int | str, dict]:
    """
    Of each contender the seconds of each metric in each round, its peak of memory, and what was compiled.

    Raises:
        RuntimeError: Something was to be compiled and was not.
    """
    device, figures, calls, taken = models.device, {}, {}, {}
    models.set_attention(case.attention)
    functions = {
        contender: CALLS[case.section](models, case, contender, device) for contender in (*case.visual_tokens, "llava")
    }
    # The first call of compiled code compiles, the second finds everything in place. A whole answer repeats itself.
    warm_ups = 1 if case.section == "generate" and not case.compiled else 2
    for contender, function in functions.items():
        calls[contender] = partial(time_case, function, case.section, device)
        counters.clear()
        start = time.perf_counter()
        runs = [calls[contender]() for _ in range(warm_ups)]
        figures[contender] = {
            "warm_up_seconds": time.perf_counter() - start,
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
            "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
        }
        if case.compiled and not figures[contender]["graphs"]:
            raise RuntimeError(f"Nothing was compiled for {contender}.")
        taken[contender] = [run["taken_bytes"] for run in runs]
    for contender, runs in take_turns(calls, rounds, rng).items():
        figures[contender] |= {metric: [run[metric] for run in runs] for metric in METRICS[case.section]}
        most = max([*taken[contender], *(run["taken_bytes"] for run in runs)])
        figures[contender]["peak_bytes"] = models.weight_bytes(contender) + most if device == "cuda" else None
    return figures
