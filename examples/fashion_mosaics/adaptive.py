"""
Calibrates the embedded checkpoint's adaptive budget and shows what it saves:

    python examples/fashion_mosaics/adaptive.py --output model_cards/mqt-llava-tiny/adaptive.json

Three coarse questions ("Is there any footwear?") to one fine one (a place, a row, a column or the whole list) about
each mosaic. The threshold is found on mosaics of one half of the official test items and judged on mosaics of the
other half, by `generate(num_visual_tokens="auto")` against m = M, with a paired bootstrap interval.
"""

import argparse
import json
import random
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from evaluate import score
from mosaics import DATASET_FOLDER, QUESTION_KINDS, draw_mosaic, load_items, to_messages
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.planning.calibration import calibrate


REPOSITORY = Path(__file__).parents[2]
FINE = ("position", "row", "column", "list")
BATCH_SIZE = 100


def ask(rng: random.Random, items: dict, count: int) -> list[dict]:
    """Conversations of one question and its answer, four about each mosaic: three coarse ones and a fine one."""
    rows = []
    while len(rows) < count:
        mosaic = draw_mosaic(rng, items)
        pairs = QUESTION_KINDS["presence"](rng, mosaic, 3) + QUESTION_KINDS[rng.choice(FINE)](rng, mosaic, 1)
        rows += [
            {"id": str(len(rows) + n), "messages": to_messages(mosaic.image, [pair])} for n, pair in enumerate(pairs)
        ]
    return rows


def score_any(answer: str, truth: str) -> float:
    return score("list" if ", " in truth else "position", answer, truth)


@torch.inference_mode()
def answer_all(model, processor, rows: list[dict], num_visual_tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and levels, `(questions,)`."""
    scores, levels = [], []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        inputs = processor.apply_chat_template(
            [row["messages"][:1] for row in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        outputs = model.generate(
            **inputs, num_visual_tokens=num_visual_tokens, max_new_tokens=80, return_dict_in_generate=True
        )
        texts = processor.batch_decode(outputs.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        truths = [row["messages"][1]["content"][0]["text"] for row in batch]
        scores += map(score_any, texts, truths)
        levels.append(outputs.get("visual_token_level", torch.full((len(batch),), model.config.max_visual_tokens)))
    return torch.tensor(scores), torch.cat(levels).float()


def draw_figure(calibration, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    curve, fixed, oracle = calibration.curve(), calibration.at_levels(), calibration.oracle()
    axis.plot([p.mean_tokens for p in curve], [100 * p.accuracy for p in curve], color="#0072B2", label="adaptive")
    axis.plot(
        [p.mean_tokens for p in fixed], [100 * p.accuracy for p in fixed], "s--", color="#D55E00", label="fixed m"
    )
    axis.plot(oracle.mean_tokens, 100 * oracle.accuracy, "*", color="#009E73", markersize=12, label="oracle")
    axis.set_xlabel("visual tokens per question, mean")
    axis.set_ylabel("right answers in per cent")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--levels", type=int, nargs="+", help="visual tokens; M / 16, M / 4 and M by default")
    parser.add_argument("--probed-tokens", type=int, default=8, help="of the answer, whose confidence counts")
    parser.add_argument("--target", type=float, default=0.003, help="by how much accuracy may fall, on the first half")
    parser.add_argument("--calibration-questions", type=int, default=4000)
    parser.add_argument("--test-questions", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--figure", type=Path, help="PNG file for the curve")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--save", action="store_true", help="write the budget to the checkpoint's generation_config.json"
    )
    args = parser.parse_args(argv)

    model = MQTLlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    rng, items = random.Random(args.seed), load_items("t10k", args.data_folder)
    halves = [{name: photos[half::2] for name, photos in items.items()} for half in (0, 1)]
    calibration = calibrate(
        model,
        processor,
        ask(rng, halves[0], args.calibration_questions),
        target=args.target,
        levels=args.levels,
        num_probed_tokens=args.probed_tokens,
        score=score_any,
        batch_size=BATCH_SIZE,
        max_new_tokens=80,
        save_to=args.model if args.save else None,
    )
    rows = ask(rng, halves[1], args.test_questions)
    scores, levels = answer_all(model, processor, rows, "auto")
    full_scores, _ = answer_all(model, processor, rows, model.config.max_visual_tokens)
    differences = scores - full_scores
    samples = torch.randint(len(rows), (2000, len(rows)), generator=torch.Generator().manual_seed(args.seed))
    low, high = differences[samples].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    results = {
        "budget": model.generation_config.adaptive_budget,
        "questions": len(rows),
        "accuracy": scores.mean().item(),
        "accuracy_at_max": full_scores.mean().item(),
        "difference": differences.mean().item(),
        "difference_95": [low, high],
        "mean_visual_tokens": levels.mean().item(),
        "share_of_max": levels.mean().item() / model.config.max_visual_tokens,
        "stops": {str(level): int((levels == level).sum()) for level in calibration.levels},
    }
    print(json.dumps(results, indent=1))
    if args.output:
        points = [[round(p.mean_tokens, 3), round(p.accuracy, 4)] for p in calibration.curve()]
        calibrated = {
            "questions": len(calibration.scores),
            "target": args.target,
            "seed": args.seed,
            "fixed": [[p.mean_tokens, round(p.accuracy, 4)] for p in calibration.at_levels()],
            "oracle": [round(calibration.oracle().mean_tokens, 3), round(calibration.oracle().accuracy, 4)],
            "curve": points[:: max(1, len(points) // 200)],
        }
        args.output.write_text(json.dumps({**results, "calibration": calibrated}) + "\n")
    if args.figure:
        draw_figure(calibration, args.figure)
    return results


if __name__ == "__main__":
    main()
