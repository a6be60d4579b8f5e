"""
Calibrates the embedded checkpoint's adaptive budget and shows what it saves:

    OMP_NUM_THREADS=1 python examples/fashion_mosaics/adaptive.py --save \
        --output model_cards/mqt-llava-tiny/adaptive.json

Three coarse questions ("Is there any footwear?") to one fine one (a place, a row, a column or the whole list) about
each mosaic. The threshold is found on mosaics of one half of the official test items and judged on mosaics of the
other half, by `generate(num_visual_tokens="auto")` against m = M, with a paired bootstrap interval.
adaptive_report.py draws the judged half.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from evaluate import score
from mosaics import DATASET_FOLDER, QUESTION_KINDS, draw_mosaic, load_items, to_messages
from transformers import AutoProcessor

from mqt_llava import AdaptiveBudget, MQTLlavaForConditionalGeneration
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
    """Scores, and the numbers of visual tokens that the answers took, `(questions,)`."""
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
        is_adaptive = num_visual_tokens == "auto"
        levels += outputs.visual_token_level.tolist() if is_adaptive else [num_visual_tokens] * len(batch)
    return torch.tensor(scores), torch.tensor(levels, dtype=torch.float)


def to_points(calibration) -> dict:
    """A half's points (mean visual tokens, share of right answers): fixed numbers, oracle, every threshold."""
    curve, oracle = calibration.curve(), calibration.oracle()
    curve = curve[:: max(1, len(curve) // 200)]
    return {
        "questions": len(calibration.scores),
        "fixed": [[point.mean_tokens, round(point.accuracy, 4)] for point in calibration.at_levels()],
        "oracle": [round(oracle.mean_tokens, 3), round(oracle.accuracy, 4)],
        "curve": [[round(point.mean_tokens, 3), round(point.accuracy, 4)] for point in curve],
    }


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--levels", type=int, nargs="+", help="visual tokens; M / 16, M / 4 and M by default")
    parser.add_argument("--probed-tokens", type=int, default=8, help="of the answer, whose confidence counts")
    parser.add_argument("--fixed", type=int, nargs="*", default=[2, 8], help="other numbers, to compare with")
    parser.add_argument(
        "--unended-power", type=float, default=AdaptiveBudget.unended_power, help="asks more of answers that go on"
    )
    parser.add_argument("--target", type=float, default=0.001, help="by how much accuracy may fall, on the first half")
    parser.add_argument("--calibration-questions", type=int, default=4000)
    parser.add_argument("--test-questions", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--save", action="store_true", help="write the budget to the checkpoint's generation_config.json"
    )
    args = parser.parse_args(argv)

    model = MQTLlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    rng, items = random.Random(args.seed), load_items("t10k", args.data_folder)
    counts = (args.calibration_questions, args.test_questions)
    rows = [
        ask(rng, {name: photos[half::2] for name, photos in items.items()}, count) for half, count in enumerate(counts)
    ]

    def measure(half: int, save_to: str | None = None):
        return calibrate(
            model,
            processor,
            rows[half],
            target=args.target,
            levels=args.levels,
            num_probed_tokens=args.probed_tokens,
            unended_power=args.unended_power,
            score=score_any,
            batch_size=BATCH_SIZE,
            max_new_tokens=80,
            save_to=save_to,
        )

    # The judged half first and for its points alone: the budget that holds is the one that was calibrated last.
    judged, calibration = measure(1), measure(0, args.model if args.save else None)
    scores, levels = answer_all(model, processor, rows[1], "auto")
    full_scores = judged.scores[:, -1]
    differences = scores - full_scores
    samples = torch.randint(len(scores), (2000, len(scores)), generator=torch.Generator().manual_seed(args.seed))
    low, high = differences[samples].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    results = {
        "budget": model.generation_config.adaptive_budget,
        "questions": len(scores),
        "accuracy": scores.mean().item(),
        "accuracy_at_max": full_scores.mean().item(),
        "difference": differences.mean().item(),
        "difference_95": [low, high],
        "mean_visual_tokens": levels.mean().item(),
        "share_of_max": levels.mean().item() / model.config.max_visual_tokens,
        "stops": {str(level): int((levels == level).sum()) for level in calibration.levels},
    }
    print(json.dumps(results, indent=1))
    results |= {"target": args.target, "seed": args.seed}
    results |= {"judged": to_points(judged), "calibration": to_points(calibration)}
    for m in args.fixed:
        accuracy = answer_all(model, processor, rows[1], m)[0].mean().item()
        results["judged"]["fixed"].append([m, round(accuracy, 4)])
    results["judged"]["fixed"].sort()
    if args.output:
        args.output.write_text(json.dumps(results) + "\n")
    return results


if __name__ == "__main__":
    main()
