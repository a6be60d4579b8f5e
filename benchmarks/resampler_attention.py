"""
The query transformer's attention: plain products, as the package computes it, against torch's SDPA.

    python benchmarks/resampler_attention.py --output benchmarks/results/resampler_attention.json

At CLIP-L's shapes (576 patches of width 1024, 16 heads, M = 256) with random weights. Queries and keys are the same
for every image, so both fold the images of a batch into the width of the values: softmax(Q K^T) is computed once per
call. Timed are the query transformer as a whole with either attention and, for the share, the vision tower before it
(CLIP-L's 23 layers that are used, 336 pixels). In rounds of all calls in random order; medians, ratios of the medians,
and the least and greatest ratio of one round.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from markdown_table import table
from torch import nn
from training_step import hardware
from transformers import CLIPVisionConfig, CLIPVisionModel

from mqt_llava import MQTLlavaConfig
from mqt_llava.models.modeling_mqt_llava import MQTLlavaResampler


BUDGETS, IMAGES = (1, 16, 64, 256), (1, 4)


class SDPAResampler(MQTLlavaResampler):
    """The same with `scaled_dot_product_attention`."""

    def forward(self, patches: torch.Tensor, num_queries: int) -> torch.Tensor:
        num_images, num_patches, _ = patches.shape
        positions = self.query_positions[:num_queries].to(self.query.dtype)
        queries = self.q_proj(self.ln_q(self.query[:num_queries] + positions))
        keys = self.k_proj(self.ln_k(self.patch_positions(num_patches)))
        queries, keys = (states.unflatten(-1, (self.num_heads, -1)).transpose(0, 1) for states in (queries, keys))
        values = self.v_proj(self.ln_v(patches)).unflatten(-1, (self.num_heads, -1))
        values = values.permute(2, 1, 0, 3).flatten(2)
        context = nn.functional.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        context = context.unflatten(-1, (num_images, -1)).permute(2, 1, 0, 3).flatten(2)
        return self.proj(self.out_proj(context))


def build(device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Vision tower, and query transformers with products and with SDPA that share their weights."""
    vision_config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    config = MQTLlavaConfig(vision_config=vision_config)
    tower = CLIPVisionModel(vision_config)
    products, sdpa = MQTLlavaResampler(config), SDPAResampler(config)
    for parameter in products.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    sdpa.load_state_dict(products.state_dict())
    return tuple(part.to(device, dtype).eval() for part in (tower, products, sdpa))


def seconds(call, device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(device: str, dtype: torch.dtype, rounds: int, tower_rounds: int) -> list[dict]:
    tower, products, sdpa = build(device, dtype)
    generator, rng, rows = torch.Generator().manual_seed(0), random.Random(0), []
    patches = {n: torch.randn(n, 576, 1024, generator=generator).to(device, dtype) for n in IMAGES}
    pixels = {n: torch.randn(n, 3, 336, 336, generator=generator).to(device, dtype) for n in IMAGES}
    tower_seconds = {}
    for n in IMAGES:
        times = [seconds(lambda: tower(pixels[n]), device) for _ in range(tower_rounds + 1)]  # noqa: B023
        tower_seconds[n] = statistics.median(times[1:])
    cases = {(n, m): {"products": [], "sdpa": []} for n in IMAGES for m in BUDGETS}
    for n, m in cases:  # a first call of each, which is not counted
        difference = products(patches[n], m) - sdpa(patches[n], m)
        assert difference.abs().max() < (1e-3 if dtype == torch.float32 else 0.1)
    for _ in range(rounds):
        calls = [(case, name, part) for case in cases for name, part in (("products", products), ("sdpa", sdpa))]
        rng.shuffle(calls)
        for case, name, part in calls:
            cases[case][name].append(seconds(lambda: part(patches[case[0]], case[1]), device))  # noqa: B023
    for (n, m), times in cases.items():
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = [b / a for a, b in zip(times["products"], times["sdpa"])]
        whole = {name: tower_seconds[n] + value for name, value in medians.items()}
        rows.append({
            "images": n, "m": m, "products_seconds": medians["products"], "sdpa_seconds": medians["sdpa"],
            "ratio": medians["sdpa"] / medians["products"], "ratio_by_round": [min(ratios), max(ratios)],
            "vision_tower_seconds": tower_seconds[n], "share_of_image_path": medians["products"] / whole["products"],
            "image_path_ratio": whole["sdpa"] / whole["products"],
        })  # fmt: skip
    return rows


def report(rows: list[dict]) -> str:
    head = (
        "images | m | products, ms | SDPA, ms | SDPA / products (rounds) | share of the image path "
        "| image path with SDPA / with products"
    )
    lines = []
    for row in rows:
        low, high = row["ratio_by_round"]
        lines.append(
            f"{row['images']} | {row['m']} | {1e3 * row['products_seconds']:.2f} | {1e3 * row['sdpa_seconds']:.2f} "
            f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['share_of_image_path']:.1%} "
            f"| {row['image_path_ratio']:.3f}"
        )
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tower-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the figures; the table goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    used = hardware(args.device)
    rows = measure(args.device, getattr(torch, args.dtype), args.rounds, args.tower_rounds)
    result = {
        **used, "dtype": args.dtype, "rounds": args.rounds, "rows": rows,
    }  # fmt: skip
    print(report(rows))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(f"{report(rows)}\n")


if __name__ == "__main__":
    main()
