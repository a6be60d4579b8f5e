"""
Tests whether a calibrated budget keeps its promise, on questions about mosaics of the official test items:

    OMP_NUM_THREADS=1 python examples/fashion_mosaics/promise.py --log pool.jsonl \
        --output benchmarks/results/promise.json --calibration benchmarks/results/calibration.json

A large pool of prompts, three coarse questions to one fine one, is answered once at every level, without right
answers; where it is stopped, that goes on from `--log`. Calibrations are then drawn from the pool: each promises a
risk by some of the prompts and is judged on all others. A right promise is broken in at most 5% of the draws.
`--calibration` is the report of one of them, on as many prompts as the largest of `--prompts` and at the middle one of
`--risks`; adaptive_report.py draws it.
"""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from adaptive import REPOSITORY, ask
from mosaics import DATASET_FOLDER, load_items
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.files.atomic_file import write_atomically
from mqt_llava.models.adaptive_budget import AdaptiveBudget, checkpoint_digest
from mqt_llava.planning import Calibration, report_calibration
from mqt_llava.planning.calibration import exact_match
from mqt_llava.planning.learn_then_test import binomial_cdf
from mqt_llava.planning.level_answers import answer_at_levels, read_questions


CONFIDENCE = 0.95
BATCH_SIZE = 100


def collect(args: argparse.Namespace, model) -> Calibration:
    """The pool: whether each answer agrees with that at M."""
    items = load_items("t10k", args.data_folder)
    rows = [{**row, "messages": row["messages"][:1]} for row in ask(random.Random(args.seed), items, args.pool)]
    rows.sort(key=lambda row: row["messages"][0]["content"][-1]["text"])  # a batch takes as long as its longest answer
    budget = AdaptiveBudget(args.levels, num_probed_tokens=args.probed_tokens, unended_power=args.unended_power)
    levels = budget.levels_for(model.config.max_visual_tokens)
    processor = AutoProcessor.from_pretrained(args.model)
    questions = read_questions(rows, need_answers=False)
    answers = answer_at_levels(model, processor, questions, levels, args.probed_tokens, BATCH_SIZE, 80, args.log)
    scores = torch.tensor([[float(exact_match(text, texts[-1])) for text in texts] for texts in answers.texts])
    return Calibration(
        levels,
        scores,
        budget.confidence_in(answers.logprobs, answers.has_ended),
        args.probed_tokens,
        args.unended_power,
        reference="answers at M",
        ids=[question.id for question in questions],
        texts=answers.texts,
    )


def choose(pool: Calibration, indices: torch.Tensor) -> Calibration:
    """Some of the prompts."""
    ids, texts = ([values[index] for index in indices.tolist()] for values in (pool.ids, pool.texts))
    return replace(pool, scores=pool.scores[indices], confidence=pool.confidence[indices], ids=ids, texts=texts)


def risk_and_tokens(judged: Calibration, stops: torch.Tensor) -> tuple[float, float]:
    return judged.is_too_early(stops).float().mean().item(), judged.point(stops).mean_tokens


def best_afterwards(pool: Calibration, risk: float) -> float:
    """Mean visual tokens of the best threshold, for whoever knows all answers."""
    thresholds = pool.confidence[:, :-1].flatten().sort().values[:: max(1, pool.confidence[:, :-1].numel() // 1000)]
    known = [risk_and_tokens(pool, pool.stops(threshold)) for threshold in [*thresholds.tolist(), float("inf")]]
    return min(tokens for lost, tokens in known if lost <= risk)


def simulate(pool: Calibration, num_prompts: int, risk: float, draws: int, seed: int) -> dict:
    """Calibrates again and again on prompts drawn from the pool, and judges on the others."""
    generator, risks, tokens, num_at_max = torch.Generator().manual_seed(seed), [], [], 0
    for _ in range(draws):
        drawn, others = (
            choose(pool, indices)
            for indices in torch.randperm(len(pool.scores), generator=generator).tensor_split([num_prompts])
        )
        budget = drawn.choose_promised(risk, CONFIDENCE)
        lost, mean_tokens = risk_and_tokens(others, others.stops_of(budget))
        risks.append(lost)
        tokens.append(mean_tokens)
        num_at_max += budget.promise is None
    broken, best = sum(lost > risk for lost in risks), best_afterwards(pool, risk)
    return {
        "prompts": num_prompts,
        "risk": risk,
        "draws": draws,
        "broken": broken,
        "share_broken": broken / draws,
        # Of seeing so many or more where exactly 5% are broken.
        "p_value": 1 - binomial_cdf(broken - 1, draws, 1 - CONFIDENCE) if broken else 1.0,
        "at_max": num_at_max,
        "mean_risk": sum(risks) / draws,
        "mean_visual_tokens": sum(tokens) / draws,
        "best_visual_tokens": best,
        "tokens_over_best": sum(tokens) / draws / best,
    }


def to_table(simulations: list[dict]) -> str:
    """In Markdown."""
    lines = [
        "| calibrated on | promised | broken | differ, mean | mean tokens | best threshold's (times as many) |",
        "|---|---|---|---|---|---|",
    ]
    for row in simulations:
        tokens = f"{row['mean_visual_tokens']:.2f} | {row['best_visual_tokens']:.2f} ({row['tokens_over_best']:.2f})"
        broken = f"{row['broken']} of {row['draws']} ({row['share_broken']:.1%})"
        lines.append(f"| {row['prompts']} | {row['risk']:.0%} | {broken} | {row['mean_risk']:.2%} | {tokens} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--levels", type=int, nargs="+", help="visual tokens; M / 16, M / 4 and M by default")
    parser.add_argument("--probed-tokens", type=int, default=8, help="of the answer, whose confidence counts")
    parser.add_argument(
        "--unended-power", type=float, default=AdaptiveBudget.unended_power, help="asks more of answers that go on"
    )
    parser.add_argument("--pool", type=int, default=42000, help="prompts to draw from")
    parser.add_argument("--prompts", type=int, nargs="+", default=[500, 1000, 2000], help="to calibrate on")
    parser.add_argument("--risks", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--log", type=Path, help="file for the answers, to go on from")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--calibration", type=Path, help="JSON file for the report of one calibration")
    args = parser.parse_args(argv)

    model = MQTLlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    pool = collect(args, model)
    results = {
        "checkpoint": checkpoint_digest(model),
        "pool": len(pool.scores),
        "seed": args.seed,
        "levels": pool.levels,
        "num_probed_tokens": pool.num_probed_tokens,
        "unended_power": pool.unended_power,
        "agree_at_levels": [point.accuracy for point in pool.at_levels()],
        "simulations": [
            simulate(pool, number, risk, args.draws, args.seed) for number in args.prompts for risk in args.risks
        ],
    }
    print(to_table(results["simulations"]))
    if args.output:
        write_atomically(args.output, json.dumps(results, indent=1) + "\n")
    if args.calibration:
        order = torch.randperm(len(pool.scores), generator=torch.Generator().manual_seed(args.seed))
        calibration = choose(pool, order[: max(args.prompts)])
        risk = sorted(args.risks)[len(args.risks) // 2]
        calibration.budget = calibration.choose_promised(risk, CONFIDENCE, checkpoint_digest(model))
        write_atomically(args.calibration, json.dumps(report_calibration(calibration)) + "\n")
    return results


if __name__ == "__main__":
    main()
