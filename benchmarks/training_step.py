"""
Time, FLOPs and memory of a training step, of MQT-LLaVA with a random number of visual tokens against LLaVA with 576:

    python benchmarks/training_step.py --size mid
    python benchmarks/training_step.py --size 7b --device cuda --output benchmarks/results/training_step_7b.json

The models are those of `compared_models.py`. A step is zero_grad, forward with labels, backward and AdamW (fused,
states in the weights' dtype). In stage 1 only the query transformer or LLaVA's projector trains, in stage 2 the
decoder too; the vision tower is always frozen. Samples are of equal length, so nothing is padded. No gradient
checkpointing.

m is uniform over the even numbers 2..256, one number per step, and both stages see the same numbers: one draw from
each of equally wide strata, in pairs m and 258 - m, so that few draws are an unbiased sample of mean 129. m = 256,
which the paper's stage 1 uses, is measured beside them. First comes one untimed step for each m, which warms up and
counts FLOPs of forward and backward, the bytes that autograd keeps for the backward pass, and the most bytes that are
alive at once, weights left out. Then come rounds over all m in random order, each MQT-LLaVA step followed by a LLaVA
step.

Distillation is measured beside plain training of MQT-LLaVA, in stage 1 and with LLaVA as the teacher that shares the
decoder: a step with both losses, followed by a step with the labels alone at the same m. LLaVA reads its prompt
without gradients, so what it takes shows in the time and in what is alive at most, and hardly in what is kept.

What training takes is a mean over m, and the median of a mixture of cheap and dear steps is not that. So the time is
the mean over the draws of the median over the rounds, and likewise for the LLaVA steps that followed them: the same
estimator on both sides, which met the same load. The ratio of each round on its own shows the noise. Peaks of GPU
memory are the highest of all steps, with everything that lives there: decoder, gradients, optimizer states, and also
the other model's vision tower and projector.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, median

import torch
from compared_models import LLAVA_TOKENS, MAX_TOKENS, SIZES, TEXT_TOKENS, Size, build_models, flop_counter
from harness import SEED, begin, command_line, save, table, take_turns, time_call
from live_memory import LiveMemory
from torch import nn

from mqt_llava.training.distillation import answer_logits, divergence
from mqt_llava.training.teachers import SharedTeacher


DRAWS = {"tiny": 8, "mid": 4, "7b": 16}  # how many m, by size


def make_batch(size: Size, visual_tokens: int, device: str) -> dict[str, torch.Tensor]:
    """Samples of one token, an image and the rest of the text, the second half of which is the answer."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(size.vocabulary - 1, (size.batch_size, TEXT_TOKENS), generator=generator)
    image = torch.full((size.batch_size, visual_tokens), size.vocabulary - 1)
    input_ids = torch.cat([text[:, :1], image, text[:, 1:]], dim=1)
    labels = input_ids.clone()
    labels[:, : -TEXT_TOKENS // 2] = -100
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "pixel_values": torch.randn(size.batch_size, 3, 336, 336, generator=generator).to(size.dtype),
    }
    if visual_tokens != LLAVA_TOKENS:
        batch["visual_token_counts"] = torch.full((size.batch_size,), visual_tokens)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def draw_visual_tokens(number: int, rng: random.Random) -> list[int]:
    """Even numbers in 2..256, one from each of `number` equal strata, in pairs m and 258 - m."""
    width = MAX_TOKENS / 2 / number
    lower = [2 + 2 * int(width * (stratum + rng.random())) for stratum in range(number // 2)]
    return [*lower, *(MAX_TOKENS + 2 - m for m in lower)]


def make_optimizer(models: tuple[nn.Module, nn.Module], stage: int) -> torch.optim.Optimizer:
    """
    Lets train what the stage trains, under one optimizer for both models: it passes over parameters without gradient,
    so a step of one model costs what it would alone, and the shared decoder has its states once.
    """
    for model in models:
        model.requires_grad_(stage == 2)
        model.model.vision_tower.requires_grad_(False)
    mqt, llava = models
    mqt.model.resampler.requires_grad_(True)
    llava.model.multi_modal_projector.requires_grad_(True)
    trained = {parameter for model in models for parameter in model.parameters() if parameter.requires_grad}
    return torch.optim.AdamW(trained, lr=1e-5, fused=True)


def distil(mqt: nn.Module, llava: nn.Module, batch: dict) -> torch.Tensor:
    """The loss of a batch from the LLaVA that shares the decoder, and from the labels."""
    teacher, prompts = SharedTeacher(llava, mqt), batch["teacher"]
    with teacher.watch_images():
        outputs = mqt(**{name: tensor for name, tensor in batch.items() if name != "teacher"}, use_cache=False)
    target = teacher.answer_logits(mqt, prompts, batch["pixel_values"])
    learned = divergence(answer_logits(outputs.logits, batch["labels"]), target, temperature=1.0)
    return learned / len(target) + outputs.loss


def learn(model: nn.Module, batch: dict) -> torch.Tensor:
    """The loss of a batch from its labels."""
    return model(**batch, use_cache=False).loss


@dataclass
class Contender:
    """What takes a step: a loss, and the batch that it is of at each number of visual tokens m."""

    loss: Callable[[dict], torch.Tensor]
    batch_at: Callable[[int], dict]


def count_step(loss_of: Callable, optimizer: torch.optim.Optimizer, batch: dict, weights: set[int]) -> dict[str, int]:
    """
    FLOPs of a step, the bytes that autograd keeps for its backward pass besides weights at these addresses, and the
    most bytes that are alive at once until the optimizer's turn.
    """
    kept = {}

    def pack(tensor):
        # Views share a storage. While it is held on to, no other can come to lie at its address.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    optimizer.zero_grad()
    with flop_counter() as counter, LiveMemory() as memory:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(batch)
        kept_bytes = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
        kept.clear()
        loss.backward()
    optimizer.step()
    return {"flops": counter.get_total_flops(), "kept_bytes": kept_bytes, "alive_bytes": memory.peak}


def time_step(loss_of: Callable, optimizer: torch.optim.Optimizer, batch: dict) -> tuple[float, int]:
    """Seconds of a step and its peak of GPU memory in bytes, which is 0 on a CPU."""

    def step():
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()

    device = batch["input_ids"].device.type
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = time_call(step, device)
    return seconds, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def measure(
    contenders: dict[str, Contender], models, stage: int, visual_tokens: list[int], rounds: int, rng
) -> list[dict]:
    """For each number of visual tokens the figures of one contender, and those of the other's steps that followed."""
    optimizer, rows = make_optimizer(models, stage), []
    weights = {parameter.untyped_storage().data_ptr() for model in models for parameter in model.parameters()}
    for m in visual_tokens:
        counts = {name: count_step(one.loss, optimizer, one.batch_at(m), weights) for name, one in contenders.items()}
        rows.append({"m": m, **counts})

    def time_both(m: int) -> list[tuple[float, int]]:
        return [time_step(one.loss, optimizer, one.batch_at(m)) for one in contenders.values()]

    calls = {index: partial(time_both, m) for index, m in enumerate(visual_tokens)}  # a number may come twice
    for index, steps in take_turns(calls, rounds, rng).items():
        for name, times in zip(contenders, zip(*steps)):
            seconds, peaks = zip(*times)
            rows[index][name] |= {"seconds": list(seconds), "peak_bytes": max(peaks)}
    return rows


def summarise(rows: list[dict]) -> dict:
    """Means over the numbers of visual tokens, of peaks the highest; and the first contender's over the other's."""
    names = [name for name in rows[0] if name != "m"]
    summary = {"mean_m": mean(row["m"] for row in rows)}
    for name in names:
        figures = [row[name] for row in rows]
        summary[name] = {key: mean(one[key] for one in figures) for key in ("flops", "kept_bytes", "alive_bytes")}
        summary[name]["peak_bytes"] = max(one["peak_bytes"] for one in figures)
        summary[name]["seconds"] = mean(median(one["seconds"]) for one in figures)
    first, other = (summary[name] for name in names)
    summary["ratio"] = {key: first[key] / other[key] for key in first if other[key]}
    totals = ([sum(seconds) for seconds in zip(*(row[name]["seconds"] for row in rows))] for name in names)
    summary["seconds_ratio_by_round"] = [first_total / other_total for first_total, other_total in zip(*totals)]
    return summary


def report(stages: dict[int, dict], distillation: dict) -> str:
    head = "stage | m | step, {} | time ratio (rounds) | FLOPs ratio | kept for backward | alive at most | GPU peak"
    parts = (
        ("MQT-LLaVA / LLaVA", ("mqt", "llava"), stages),
        ("distilled / plain", ("distilled", "plain"), distillation),
    )
    return "\n\n".join(
        table(
            head.format(title),
            [line(stage, m, one[m], names) for stage, one in part.items() for m in ("uniform", "256")],
        )
        for title, names, part in parts
    )


def line(stage: int, m: str, summary: dict, names: tuple[str, str]) -> str:
    (first, other), ratio = (summary[name] for name in names), summary["ratio"]
    rounds = summary["seconds_ratio_by_round"]
    peaks = f"{first['peak_bytes'] / 1e9:.1f} / {other['peak_bytes'] / 1e9:.1f} GB"
    return (
        f"{stage} | {m} | {first['seconds']:.3f} / {other['seconds']:.3f} s "
        f"| {ratio['seconds']:.3f} ({min(rounds):.3f} to {max(rounds):.3f}) | {ratio['flops']:.3f} "
        f"| {first['kept_bytes'] / 1e9:.3f} / {other['kept_bytes'] / 1e9:.3f} GB ({ratio['kept_bytes']:.2f}) "
        f"| {first['alive_bytes'] / 1e9:.3f} / {other['alive_bytes'] / 1e9:.3f} GB ({ratio['alive_bytes']:.2f}) "
        f"| {peaks if other['peak_bytes'] else '-'}"
    )


def main() -> None:
    parser = command_line(
        __doc__,
        size={"choices": DRAWS, "default": "tiny"},
        device={},
        rounds={"help": "timed steps for each m; by default what the size says"},
        threads={},
    )
    parser.add_argument("--draws", type=int, help="how many m, an even number; by default what the size says")
    args = parser.parse_args()
    size, draws, rng = SIZES[args.size], args.draws or DRAWS[args.size], random.Random(SEED)
    if draws % 2 or not 2 <= draws <= MAX_TOKENS / 2:
        parser.error(f"--draws is {draws}, but must be an even number in 2..{MAX_TOKENS // 2}.")

    result = begin(args, dtype=str(size.dtype), batch_size=size.batch_size, text_tokens=TEXT_TOKENS)
    result |= {"rounds": args.rounds or size.rounds, "draws": draw_visual_tokens(draws, rng)}
    print(json.dumps(result))
    mqt, llava = models = [model.train() for model in build_models(size, args.device)]

    def batch_at(m: int) -> dict:
        return make_batch(size, m, args.device)

    def batch_with_teacher(m: int) -> dict:
        return {**batch_at(m), "teacher": batch_at(LLAVA_TOKENS)}

    beside_llava = {
        "mqt": Contender(partial(learn, mqt), batch_at),
        "llava": Contender(partial(learn, llava), lambda m: batch_at(LLAVA_TOKENS)),
    }
    beside_plain = {
        "distilled": Contender(partial(distil, mqt, llava), batch_with_teacher),
        "plain": Contender(partial(learn, mqt), batch_at),
    }
    for name, contenders, stages in (("stages", beside_llava, (1, 2)), ("distillation", beside_plain, (1,))):
        result[name] = {}
        for stage in stages:
            numbers = [*result["draws"], MAX_TOKENS]
            rows = measure(contenders, models, stage, numbers, result["rounds"], rng)
            result[name][stage] = {"uniform": summarise(rows[:-1]), "256": summarise(rows[-1:]), "steps": rows}
    tables = report(result["stages"], result["distillation"])
    print(tables)
    save(result, args.output, tables)


if __name__ == "__main__":
    main()
