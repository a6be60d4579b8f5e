"""
How much of a heatmap lies where the answer is: "What is in the top left?" on held-out mosaics.

    python examples/fashion_mosaics/heatmap_mass.py --output benchmarks/results/heatmap_mass.json

For each way to make a heatmap of the model's answer, the share of its positive mass that is in the top left cell, mean
over the mosaics; an even heatmap has 1/16 there. Measured besides: the vision tower's other layers; the logit of the
answer's first token in place of the log-probability of the whole; the length of the gradient, which is a heatmap
without a sign; and, as what really matters to the model, by how much the log-probability falls when the features of a
patch, or its pixels, are made blank. In float64, since gradients are of the size of rounding where the model is sure.
"""

import argparse
import json
import random
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from mosaics import DATASET_FOLDER, SIDE, draw_mosaic, load_items
from transformers import AutoModelForImageTextToText, AutoProcessor

from mqt_llava.visualization import METHODS, ImageAnswer, answer_heatmap, answer_score, attribute, heat_over_image


REPOSITORY = Path(__file__).parents[2]
QUESTION, CELL = "What is in the top left?", 0


def share(heat: torch.Tensor) -> float:
    """Of the positive mass of a heatmap over the cells or over the pixels, what is in the top left cell."""
    cells = heat.clamp(min=0).unflatten(0, (SIDE, -1)).unflatten(2, (SIDE, -1)).sum((1, 3)).flatten()
    return float(cells[CELL] / cells.sum()) if cells.sum() > 0 else 0.0


def log_probability_falls(score, patches: torch.Tensor, blank_patches: torch.Tensor) -> torch.Tensor:
    """By how much a score falls when the features of each patch are those of a blank image, `(grid, grid)`."""
    is_blank = torch.eye(patches.shape[1], dtype=torch.bool)[..., None]
    with torch.no_grad():
        return (score(patches) - score(torch.where(is_blank, blank_patches, patches))).view(SIDE, SIDE)


def by_layer(model, pixel_values: torch.Tensor, score) -> dict[str, torch.Tensor]:
    """
    Heatmaps from one gradient at each layer of the vision tower; the last one is what is compressed, and is looked at
    before and after the LayerNorm that the compressor begins with.
    """
    states = model.model.vision_tower(pixel_values.requires_grad_(), output_hidden_states=True).hidden_states
    layers = {f"layer {layer}": state for layer, state in enumerate(states[:-1])}
    layers["what is compressed"] = states[-1][:, 1:]  # behind the class token
    normalised = []
    with model.model.resampler.ln_v.register_forward_hook(lambda module, inputs, output: normalised.append(output)):
        value = score(layers["what is compressed"]).sum()
    layers["what is compressed, normalised"] = normalised[0]
    gradients = torch.autograd.grad(value, list(layers.values()))
    heatmaps = {}
    for (name, features), gradient in zip(layers.items(), gradients):
        features, gradient = features.detach()[0, -SIDE * SIDE :], gradient[0, -SIDE * SIDE :]
        for kind, heat in {
            "Grad-CAM": (features * gradient.mean(0)).sum(-1),
            "gradient times feature": (features * gradient).sum(-1),
            "gradient length": gradient.norm(dim=-1),
        }.items():
            heatmaps[f"{kind}, {name}"] = heat.view(SIDE, SIDE)
    return heatmaps


def heatmaps_of(model, processor, image, answer: ImageAnswer, m: int) -> dict[str, torch.Tensor]:
    """Every kind of heatmap of an answer, over cells or pixels."""
    score, patches = answer_score(answer, m), answer.patches

    def first_logit(features):
        return answer.logits(answer.visual_tokens(features, m))[:, 0, answer.answer_ids[0]]

    heatmaps = {}
    for method in METHODS:
        heatmaps[method] = answer_heatmap(answer, m, method=method)
        heatmaps[f"{method}, of the logit"] = attribute(first_logit, patches, answer.blank_patches, method)
    heatmaps[f"{METHODS[0]}, as drawn"] = heat_over_image(heatmaps[METHODS[0]], processor.image_processor, *image.size)
    pixel_values = processor.image_processor(image, return_tensors="pt")["pixel_values"].to(model.dtype)
    heatmaps |= by_layer(model, pixel_values, score)
    heatmaps["features made blank"] = log_probability_falls(score, patches, answer.blank_patches)
    with torch.no_grad():
        without = pixel_values.repeat(SIDE * SIDE, 1, 1, 1)
        cells = without.unflatten(2, (SIDE, -1)).unflatten(4, (SIDE, -1))
        for cell in range(SIDE * SIDE):
            cells[cell, :, cell // SIDE, :, cell % SIDE] = 0
        falls = score(patches) - score(model.model.encode_patches(without)[1][0])
    heatmaps["pixels made blank"] = falls.view(SIDE, SIDE)
    return heatmaps


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--budget", type=int, default=16, help="visual tokens")
    parser.add_argument("--mosaics", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)

    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype).eval().requires_grad_(False)
    processor = AutoProcessor.from_pretrained(args.model)
    rng, items = random.Random(args.seed), load_items("t10k", args.data_folder)
    shares, is_right = defaultdict(list), []
    for _ in range(args.mosaics):
        mosaic = draw_mosaic(rng, items)
        answer = ImageAnswer.ask(model, processor, mosaic.image, QUESTION)
        is_right.append(processor.decode(answer.answer_ids, skip_special_tokens=True).strip() == mosaic.names[CELL])
        for name, heat in heatmaps_of(model, processor, mosaic.image, answer, args.budget).items():
            shares[name].append(share(heat))

    results = {}
    print(f"| heatmap | share in the cell | of the {sum(is_right)} right answers |")
    print("|---|---|---|")
    for name, values in sorted(shares.items(), key=lambda pair: -statistics.mean(pair[1])):
        right = [value for value, kept in zip(values, is_right) if kept]
        results[name] = {"all": statistics.mean(values), "right": statistics.mean(right) if right else None}
        print(f"| {name} | {results[name]['all']:.1%} | {results[name]['right'] or 0:.1%} |")
    if args.output:
        figures = {
            "question": QUESTION,
            "budget": args.budget,
            "mosaics": args.mosaics,
            "seed": args.seed,
            "dtype": args.dtype,
        }
        figures |= {"right_answers": sum(is_right), "results": results}
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
