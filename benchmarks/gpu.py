"""
Image path, prompt, first token and further tokens of MQT-LLaVA on a GPU, against LLaVA with 576 tokens:

    python benchmarks/gpu.py --output benchmarks/results
    python benchmarks/gpu.py --size small --device cpu --output /tmp/rehearsal

Models and prompts are those of `compared_models.py`, made on the device in bfloat16. What is compared takes turns,
after two untimed calls. Sections:

1. `image_path`: `get_image_features`, from pixels to visual tokens.
2. `prefill`: a forward of encoded images and text with an empty `DynamicCache`, logits of the last token alone.
3. `first_token`: `generate` with one new token, from pixels, as it is by default.
4. `generate`: a whole answer from pixels with a static cache. Compiled it is by transformers itself, the steps after
   the first token alone, as CUDA graphs. The median of these steps is the time per token.
5. `host_to_device`: a batch of pixels copied to the GPU, from pageable and from pinned memory.

Each time stands beside its roofline (`roofline.py`), from rates that are measured first. A peak of memory is that of a
model by itself: its weights and what a call takes besides, warm-up and so compiling included.

The benchmark ends by itself: a case is left out when what a case like it took does not fit into the rest of the time
limit any more, and the most important come first. Of several sizes the first gets most of the time. After each case
the figures are written, with all cases that are not measured and why; what goes wrong in one case does not end the
rest.

On a CPU everything is rehearsed in tiny shapes, with a compiler that only traces. Its times say nothing.
"""

import gc
import random
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from compared_models import TEXT_AFTER, TEXT_BEFORE, TEXT_TOKENS
from gpu_cases import ATTENTIONS, METRICS, SCALES, Case, Models, Scale, all_cases, headlines, measure
from gpu_report import evaluate_targets, report
from harness import begin, command_line, compare, save, synchronize, take_turns, time_call
from roofline import Rates, decoder_bytes, measure_rates, roofline, work_by_metric


COPY_ROUNDS = 20
MARGIN = 1.5  # how much longer a case may take than the last one like it
NOT_REACHED = "the run ended before"


def summarise(models: Models, case: Case, figures: dict[int | str, dict], rates: Rates) -> list[dict]:
    """A row for each m and metric."""
    scale, rows = models.scale, []

    def side(contender: int | str, metric: str) -> dict:
        m = None if contender == "llava" else contender
        work = work_by_metric(
            models.of(contender).config, m, case.batch, TEXT_TOKENS, scale.new_tokens, scale.shapes.dtype
        )
        one = {key: value for key, value in figures[contender].items() if key not in METRICS[case.section]}
        one |= {"seconds": figures[contender][metric], "median": median(figures[contender][metric])}
        one |= roofline(work[metric], rates)
        return {**one, "over_roofline": one["median"] / one["roofline"]}

    for m in case.visual_tokens:
        for metric in METRICS[case.section]:
            mqt, llava = side(m, metric), side("llava", metric)
            rows.append({
                "section": case.section, "metric": metric, "batch": case.batch, "attention": case.attention,
                "compiled": case.compiled, "m": m,
                **compare("time_ratio", llava["seconds"], mqt["seconds"]), "mqt": mqt, "llava": llava,
            })  # fmt: skip
    return rows


def copy_pixels(device: str, rounds: int, rng: random.Random) -> dict:
    """32 images as a processor returns them, in float32, from either kind of memory."""
    pageable = torch.randn(32, 3, 336, 336)
    batches = {"pageable": pageable, "pinned": pageable.pin_memory()}
    calls = {
        name: partial(time_call, partial(batches[name].to, device, non_blocking=True), device) for name in batches
    }
    seconds = {name: times[1:] for name, times in take_turns(calls, rounds + 1, rng).items()}  # the first warms up
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        "bytes": pageable.nbytes, "seconds": seconds, "median": medians,
        "bytes_per_second": {name: pageable.nbytes / value for name, value in medians.items()},
        **compare("time_ratio", seconds["pageable"], seconds["pinned"]),
    }  # fmt: skip


def free_memory(device: str) -> None:
    """Drops compiled code with its CUDA graphs, and whatever an exception still held."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def rehearsed(scale: Scale) -> list[Case]:
    """What is compiled on a CPU: of each section something."""
    return [*headlines(scale), Case("image_path", scale.batches[1], "sdpa", True, (256,))]


def missing_attention(models: Models) -> dict[str, str]:
    """Which kinds of attention cannot be chosen here, and why."""
    missing = {}
    for attention in ATTENTIONS:
        try:
            models.set_attention(attention)
        except Exception as error:  # no package, or kernels that would have to be fetched
            missing[attention] = describe(error)
    return missing


def reason_to_skip(case: Case, scale: Scale, device: str, took: dict, left: float) -> str | None:
    """
    Args:
        took: Seconds of a contender in the last case like one, by section and whether it was compiled.
        left: Seconds of the time limit.
    """
    if device == "cpu" and case.compiled and case not in rehearsed(scale):
        return "compiling it would take too long for a rehearsal"
    expected = took.get((case.section, case.compiled), scale.guess[case.compiled])
    expected *= (len(case.visual_tokens) + 1) * MARGIN
    return f"{expected:.0f} s may be needed, {max(left, 0):.0f} s are left" if expected > left else None


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


class Run:
    """One run of the benchmark: its figures so far, and where they are written."""

    def __init__(self, result: dict, device: str, rounds: int | None, output: Path):
        self.result, self.device, self.rounds, self.output = result, device, rounds, output
        self.rng = random.Random(result["seed"])

    def write(self) -> None:
        save(self.result, self.output / "gpu.json", report(self.result))

    def measure_copies(self) -> None:
        reason = None if self.device == "cuda" else "it needs a GPU"
        if reason is None:
            try:
                self.result["host_to_device"] = copy_pixels(self.device, self.rounds or COPY_ROUNDS, self.rng)
            except Exception as error:
                reason = describe(error)
            free_memory(self.device)
        if reason:
            self.result["skipped"].append({"section": "host_to_device", "reason": reason})
        self.write()

    def prepare_size(self, name: str) -> tuple[Models, Rates]:
        """What the device can do, and the models on it."""
        scale, size = SCALES[name], self.result["sizes"][name]
        dtype = scale.shapes.dtype
        rates = measure_rates(self.device, dtype, scale.matmul_sides, scale.copy_bytes)
        free_memory(self.device)
        start = time.perf_counter()
        models = Models(scale, self.device)
        synchronize(self.device)
        size |= {
            "dtype": str(dtype), "batches": scale.batches, "new_tokens": scale.new_tokens,
            "rounds": self.rounds or scale.shapes.rounds, "flops_per_second": rates.flops,
            "bytes_per_second": rates.bytes, "build_seconds": time.perf_counter() - start,
            "weight_read_seconds": decoder_bytes(models.mqt.config, dtype) / rates.bytes, "targets": [],
        }  # fmt: skip
        return models, rates

    def measure_size(self, name: str, cases: dict[Case, dict], deadline: float) -> None:
        """
        Args:
            cases: The entry of each case in the list of those that are not measured, which it leaves once it is.
            deadline: When to end, by `time.perf_counter`.
        """
        try:
            models, rates = self.prepare_size(name)
        except Exception as error:  # the next size may fit
            for entry in cases.values():
                entry["reason"] = describe(error)
            return
        scale, size, took = SCALES[name], self.result["sizes"][name], {}
        missing = missing_attention(models)
        for case, entry in cases.items():
            start = time.perf_counter()
            reason = missing.get(case.attention) or reason_to_skip(case, scale, self.device, took, deadline - start)
            if reason is None:
                reason = self.measure_case(models, case, rates, size)
                if reason is None:
                    took[case.section, case.compiled] = (time.perf_counter() - start) / (len(case.visual_tokens) + 1)
                    self.result["skipped"].remove(entry)
                print(f"{name}, {time.perf_counter() - start:.1f} s: {case}: {reason or 'measured'}", flush=True)
            entry["reason"] = reason
            size["targets"] = evaluate_targets(size, scale.batches[1])
            self.write()

    def measure_case(self, models: Models, case: Case, rates: Rates, size: dict) -> str | None:
        """What went wrong, if anything did. Out of memory, a kernel that is missing: the other cases go on."""
        reason = None
        try:
            figures = measure(models, case, size["rounds"], self.rng)
            size["rows"] += summarise(models, case, figures, rates)
        except Exception as error:
            reason = describe(error)
        if case.compiled or reason:
            free_memory(self.device)
        return reason


def main() -> None:
    start = time.perf_counter()
    parser = command_line(
        __doc__,
        size={"nargs": "+", "choices": SCALES, "default": ["7b", "1b"], "help": "the first gets most time"},
        device={"default": "cuda"},
        rounds={"help": "by default what the size says"},
        output={"required": True, "help": "folder for gpu.json and gpu.md"},
    )
    parser.add_argument("--sections", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--time-limit", type=float, default=540, help="seconds")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --size small --device cpu rehearses without one.")
    args.output.mkdir(parents=True, exist_ok=True)

    result = begin(args, cuda=torch.version.cuda, time_limit=args.time_limit, text_tokens=[TEXT_BEFORE, TEXT_AFTER])
    result |= {"sizes": {}, "skipped": []}
    cases = {}
    for name in args.size:
        chosen = [case for case in all_cases(SCALES[name]) if case.section in args.sections]
        cases[name] = {case: {"size": name, **vars(case), "reason": NOT_REACHED} for case in chosen}
        result["skipped"] += cases[name].values()
        result["sizes"][name] = {"rows": []}
    run = Run(result, args.device, args.rounds, args.output)
    run.measure_copies()
    shares = {name: SCALES[name].share for name in args.size}
    passed = 0
    for name in args.size:
        passed += shares[name]
        deadline = start + args.time_limit * passed / sum(shares.values())
        run.measure_size(name, cases[name], deadline)
        free_memory(args.device)
        run.write()
    result["seconds"] = time.perf_counter() - start
    run.write()
    print(report(result))


if __name__ == "__main__":
    main()
