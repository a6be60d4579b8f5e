"""
The query transformer's attention: plain products, as the package computes it, against torch's SDPA.

    python benchmarks/resampler_attention.py --output benchmarks/results/resampler_attention.json

At CLIP-L's shapes (576 patches of width 1024, 16 heads, M = 256), or small ones, with random weights. Queries and keys
are the same for every image, so both fold the images of a batch into the width of the values: softmax(Q K^T) is
computed once per call. Timed are the query transformer as a whole with either attention and, for the share, the vision
tower before it (all layers but the last, which nobody uses, 336 pixels).
"""

import random
from functools import partial
from statistics import median

import torch
from compared_models import SIZES
from harness import SEED, begin, command_line, compare, save, spread, table, take_turns, time_call
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mqt_llava import MQTLlavaConfig
from mqt_llava.models.modeling_mqt_llava import MQTLlavaResampler


VISUAL_TOKENS, IMAGES = (1, 16, 64, 256), (1, 4)


class SDPAResampler(MQTLlavaResampler):
    """The same with `scaled_dot_product_attention`."""

    def forward(self, patches: torch.Tensor, num_visual_tokens: int) -> torch.Tensor:
        num_images, num_patches, _ = patches.shape
        positions = self.query_positions[:num_visual_tokens].to(self.query.dtype)
        queries = self.q_proj(self.ln_q(self.query[:num_visual_tokens] + positions))
        keys = self.k_proj(self.ln_k(self.patch_positions(num_patches)))
        queries, keys = (states.unflatten(-1, (self.num_heads, -1)).transpose(0, 1) for states in (queries, keys))
        values = self.v_proj(self.ln_v(patches)).unflatten(-1, (self.num_heads, -1))
        values = values.permute(2, 1, 0, 3).flatten(2)
        context = nn.functional.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        context = context.unflatten(-1, (num_images, -1)).permute(2, 1, 0, 3).flatten(2)
        return self.proj(self.out_proj(context))


def build(size: str, device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Vision tower, and query transformers with products and with SDPA that share their weights."""
    hidden_size, intermediate_size, num_layers, num_heads = SIZES[size].vision
    vision_config = CLIPVisionConfig(
        hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=num_layers - 1,
        num_attention_heads=num_heads, image_size=336, patch_size=14,
    )  # fmt: skip
    config = MQTLlavaConfig(vision_config=vision_config)
    tower = CLIPVisionModel(vision_config)
    products, sdpa = MQTLlavaResampler(config), SDPAResampler(config)
    for parameter in products.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    sdpa.load_state_dict(products.state_dict())
    return tuple(part.to(device, dtype).eval() for part in (tower, products, sdpa))


@torch.inference_mode()
def measure(size: str, device: str, dtype: torch.dtype, rounds: int, tower_rounds: int) -> list[dict]:
    tower, products, sdpa = build(size, device, dtype)
    rng, rows = random.Random(SEED), []
    patches = {n: torch.randn(n, 576, SIZES[size].vision[0], device=device, dtype=dtype) for n in IMAGES}
    pixels = {n: torch.randn(n, 3, 336, 336, device=device, dtype=dtype) for n in IMAGES}
    calls, tower_calls = {}, {n: partial(time_call, partial(tower, pixels[n]), device) for n in IMAGES}
    for n in IMAGES:
        for m in VISUAL_TOKENS:  # a first call of each, which is not counted
            difference = products(patches[n], m) - sdpa(patches[n], m)
            assert difference.abs().max() < (1e-3 if dtype == torch.float32 else 0.1)
            for name, part in (("products", products), ("sdpa", sdpa)):
                calls[n, m, name] = partial(time_call, partial(part, patches[n], m), device)
    tower_seconds = {n: median(times[1:]) for n, times in take_turns(tower_calls, tower_rounds + 1, rng).items()}
    seconds = take_turns(calls, rounds, rng)
    for n in IMAGES:
        for m in VISUAL_TOKENS:
            times = {name: seconds[n, m, name] for name in ("products", "sdpa")}
            medians = {name: median(values) for name, values in times.items()}
            whole = {name: tower_seconds[n] + value for name, value in medians.items()}
            rows.append({
                "images": n, "m": m, "products_seconds": medians["products"], "sdpa_seconds": medians["sdpa"],
                **compare("ratio", times["sdpa"], times["products"]), "vision_tower_seconds": tower_seconds[n],
                "share_of_image_path": medians["products"] / whole["products"],
                "image_path_ratio": whole["sdpa"] / whole["products"],
            })  # fmt: skip
    return rows


def report(rows: list[dict]) -> str:
    head = (
        "images | m | products, ms | SDPA, ms | SDPA / products (rounds) | share of the image path "
        "| image path with SDPA / with products"
    )
    lines = [
        f"{row['images']} | {row['m']} | {1e3 * row['products_seconds']:.2f} | {1e3 * row['sdpa_seconds']:.2f} "
        f"| {spread(row, 'ratio', 2)} | {row['share_of_image_path']:.1%} | {row['image_path_ratio']:.3f}"
        for row in rows
    ]
    return table(head, lines)


def main() -> None:
    parser = command_line(
        __doc__,
        size={"choices": ("small", "full"), "default": "full"},
        device={},
        dtype={"default": "float32"},
        rounds={"default": 15},
        threads={"default": 1},
    )
    parser.add_argument("--tower-rounds", type=int, default=3)
    args = parser.parse_args()
    result = begin(args)
    result["rows"] = measure(args.size, args.device, getattr(torch, args.dtype), args.rounds, args.tower_rounds)
    print(report(result["rows"]))
    save(result, args.output, report(result["rows"]))


if __name__ == "__main__":
    main()
