"""
Time, FLOPs and memory of a training step, of MQT-LLaVA with a random number of visual tokens against LLaVA with 576:

    python benchmarks/training_step.py --size mid
    python benchmarks/training_step.py --size 7b --device cuda --output benchmarks/results/training_step_7b.json

Both models have random weights, a vision tower of the same shape, and one decoder that they share, so that two of 7B
fit on a GPU. LLaVA runs all layers of its vision tower, as transformers does, MQT-LLaVA those up to feature layer -2.
A step is zero_grad, forward with labels, backward and AdamW (fused, states in the weights' dtype). In stage 1 only the
query transformer or LLaVA's projector trains, in stage 2 the decoder too; the vision tower is always frozen. Samples
are of equal length, so nothing is padded. No gradient checkpointing.

m is uniform over the even numbers 2..256, one number per step, and both stages see the same numbers: one draw from
each of equally wide strata, in pairs m and 258 - m, so that few draws are an unbiased sample of mean 129. m = 256,
which the paper's stage 1 uses, is measured beside them. First comes one untimed step for each m, which warms up and
counts: FLOPs of matrix products, convolutions and attention in forward and backward (FlopCounterMode on the real step;
causal attention counts in full), and the bytes that autograd keeps for the backward pass, weights left out. Then come
rounds over all m in random order, each MQT-LLaVA step followed by a LLaVA step.

What training takes is a mean over m, and the median of a mixture of cheap and dear steps is not that. So the time is
the mean over the draws of the median over the rounds, and likewise for the LLaVA steps that followed them: the same
estimator on both sides, which met the same load. The ratio of each round on its own shows the noise. Peaks of GPU
memory are the highest of all steps, with everything that lives there: decoder, gradients, optimizer states, and also
the other model's vision tower and projector.
"""

import argparse
import json
import os
import platform
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mqt_llava import MQTLlavaForConditionalGeneration


MAX_TOKENS, LLAVA_TOKENS, TEXT_TOKENS = 256, 576, 64


@dataclass
class Size:
    """What is compared. The shapes are hidden size, MLP size, layers, attention heads, heads of keys and values."""

    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]
    vocabulary: int  # its last token is the placeholder
    tied: bool
    dtype: torch.dtype
    batch_size: int
    draws: int
    rounds: int


SIZES = {
    "tiny": Size((128, 512, 4, 4), (256, 688, 4, 4, 4), 1024, False, torch.float32, 2, draws=8, rounds=3),
    # CLIP-B's width and depth with 24 x 24 patches; SmolLM2-135M.
    "mid": Size((768, 3072, 12, 12), (576, 1536, 30, 9, 3), 49152, True, torch.float32, 2, draws=4, rounds=3),
    # CLIP-L/14-336; Llama-2-7B, its vocabulary padded to a multiple of 64.
    "7b": Size((1024, 4096, 24, 16), (4096, 11008, 32, 32, 32), 32064, False, torch.bfloat16, 8, draws=16, rounds=5),
}


def build_models(size: Size, device: str) -> tuple[MQTLlavaForConditionalGeneration, LlavaForConditionalGeneration]:
    """The two models, which share decoder and head."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    vision_config = CLIPVisionConfig(**dict(zip(names, size.vision)), image_size=336, patch_size=14)
    text_config = LlamaConfig(**dict(zip(names, size.text)), vocab_size=size.vocabulary, tie_word_embeddings=size.tied)
    llava_config = LlavaConfig(
        vision_config=vision_config, text_config=text_config, image_token_id=size.vocabulary - 1,
        tie_word_embeddings=size.tied,
    )  # fmt: skip
    with torch.device(device):
        llava = LlavaForConditionalGeneration._from_config(llava_config, dtype=size.dtype)
        vision_tower = CLIPVisionModel._from_config(vision_config, dtype=size.dtype)
    with torch.device("meta"):
        decoder = LlamaForCausalLM(text_config)
    decoder.model, decoder.lm_head = llava.model.language_model, llava.lm_head
    mqt = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        vision_tower, decoder, image_token_id=size.vocabulary - 1, max_visual_tokens=MAX_TOKENS
    )
    return mqt.train(), llava.train()


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


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args, **kwargs) -> int:
    """Every query with every key, then every weight with every value."""
    return 2 * query.numel() * key[-2] + 2 * query[:-1].numel() * value[-2] * value[-1]


def attention_backward_flops(gradient, query, key, value, *args, **kwargs) -> int:
    """Five products, since the scores are computed again."""
    return attention_flops(query, key, value) * 5 // 2


# FlopCounterMode itself knows attention on a GPU only, and no fewer heads of keys than of queries.
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}{direction}"): formula
    for name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    for direction, formula in (("", attention_flops), ("_backward", attention_backward_flops))
}


def count_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> dict[str, int]:
    """FLOPs of a step, and the bytes that autograd keeps for its backward pass besides weights."""
    kept = {}

    def pack(tensor):
        # Views share a storage. While it is held on to, no other can come to lie at its address.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    optimizer.zero_grad()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**batch, use_cache=False).loss
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept_bytes = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
        kept.clear()
        loss.backward()
    optimizer.step()
    return {"flops": counter.get_total_flops(), "kept_bytes": kept_bytes}


def time_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """Seconds of a step and its peak of GPU memory in bytes, which is 0 on a CPU."""
    on_gpu = batch["input_ids"].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    optimizer.zero_grad()
    model(**batch, use_cache=False).loss.backward()
    optimizer.step()
    if on_gpu:
        torch.cuda.synchronize()
    return round(time.perf_counter() - start, 5), torch.cuda.max_memory_allocated() if on_gpu else 0


def measure(models, stage: int, size: Size, device: str, visual_tokens: list[int], rounds: int, rng) -> list[dict]:
    """For each number of visual tokens the figures of MQT-LLaVA, and those of the LLaVA steps that followed."""
    (mqt, llava), optimizer = models, make_optimizer(models, stage)
    llava_batch = make_batch(size, LLAVA_TOKENS, device)
    llava_counts = count_step(llava, optimizer, llava_batch)
    rows = []
    for m in visual_tokens:
        mqt_counts = count_step(mqt, optimizer, make_batch(size, m, device))
        rows.append({"m": m})
        for name, counts in (("mqt", mqt_counts), ("llava", llava_counts)):
            rows[-1][name] = {**counts, "peak_bytes": 0, "seconds": []}
    for _ in range(rounds):
        for row in rng.sample(rows, len(rows)):
            batch = make_batch(size, row["m"], device)
            for figures, model, inputs in ((row["mqt"], mqt, batch), (row["llava"], llava, llava_batch)):
                seconds, peak_bytes = time_step(model, optimizer, inputs)
                figures["seconds"].append(seconds)
                figures["peak_bytes"] = max(peak_bytes, figures["peak_bytes"])
    return rows


def summarise(rows: list[dict]) -> dict:
    """Means over the numbers of visual tokens, but of peaks the highest, and MQT-LLaVA's over LLaVA's."""
    summary = {"mean_m": mean(row["m"] for row in rows)}
    for name in ("mqt", "llava"):
        figures = [row[name] for row in rows]
        summary[name] = {key: mean(one[key] for one in figures) for key in ("flops", "kept_bytes")}
        summary[name]["peak_bytes"] = max(one["peak_bytes"] for one in figures)
        summary[name]["seconds"] = mean(median(one["seconds"]) for one in figures)
    mqt, llava = summary["mqt"], summary["llava"]
    summary["ratio"] = {key: round(mqt[key] / llava[key], 4) for key in mqt if llava[key]}
    rounds = zip(*(zip(row["mqt"]["seconds"], row["llava"]["seconds"]) for row in rows))
    totals = ([sum(seconds) for seconds in zip(*pairs)] for pairs in rounds)
    summary["seconds_ratio_by_round"] = [round(mqt_total / llava_total, 4) for mqt_total, llava_total in totals]
    return summary


def table(stages: dict[str, dict]) -> str:
    lines = [
        "| stage | m | step, MQT-LLaVA / LLaVA | time ratio (rounds) | FLOPs ratio | kept for backward | GPU peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, summaries in stages.items():
        for m in ("uniform", "256"):
            mqt, llava, ratio = (summaries[m][key] for key in ("mqt", "llava", "ratio"))
            rounds = summaries[m]["seconds_ratio_by_round"]
            peaks = (
                f"{mqt['peak_bytes'] / 1e9:.1f} / {llava['peak_bytes'] / 1e9:.1f} GB" if llava["peak_bytes"] else "-"
            )
            lines.append(
                f"| {stage} | {m} | {mqt['seconds']:.3f} / {llava['seconds']:.3f} s "
                f"| {ratio['seconds']:.3f} ({min(rounds):.3f} to {max(rounds):.3f}) | {ratio['flops']:.3f} "
                f"| {mqt['kept_bytes'] / 1e9:.2f} / {llava['kept_bytes'] / 1e9:.2f} GB "
                f"| {peaks} |"
            )
    return "\n".join(lines)


def hardware(device: str) -> dict:
    cpu, cpuinfo = platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load_average_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--draws", type=int, help="how many m, an even number; by default what the size says")
    parser.add_argument("--rounds", type=int, help="timed steps for each m; by default what the size says")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    size, rng = SIZES[args.size], random.Random(0)
    draws, rounds = args.draws or size.draws, args.rounds or size.rounds
    if draws % 2 or not 2 <= draws <= MAX_TOKENS / 2:
        parser.error(f"--draws is {draws}, but must be an even number in 2..{MAX_TOKENS // 2}.")

    result = {
        "size": args.size, **hardware(args.device), "dtype": str(size.dtype), "batch_size": size.batch_size,
        "text_tokens": TEXT_TOKENS, "rounds": rounds, "draws": draw_visual_tokens(draws, rng), "stages": {},
    }  # fmt: skip
    print(json.dumps(result))
    torch.manual_seed(0)
    models = build_models(size, args.device)
    for stage in (1, 2):
        rows = measure(models, stage, size, args.device, [*result["draws"], MAX_TOKENS], rounds, rng)
        result["stages"][stage] = {"uniform": summarise(rows[:-1]), "256": summarise(rows[-1:]), "steps": rows}
    print(table(result["stages"]))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
