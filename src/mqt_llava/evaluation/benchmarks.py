"""The eleven benchmarks of the MQT-LLaVA paper, by their names in lmms-eval, and the figures that it published."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Benchmark:
    """
    Args:
        name: In the paper.
        task: Its task in lmms-eval.
        metric: The metric of that task which the paper reports.
        scale: What lmms-eval's number is multiplied by to be on the paper's scale.
        maximum: Of a score on that scale.
        note: How lmms-eval's task differs from what LLaVA's recipe, which the paper follows, measures.
    """

    name: str
    task: str
    metric: str
    scale: float = 100.0
    maximum: float = 100.0
    note: str = ""


JUDGE = "a judge of OpenAI's gives the scores, and not the version that the paper asked"

PAPER = (
    Benchmark("VizWiz", "vizwiz_vqa_val", "exact_match", note="validation split, not the test server's"),
    Benchmark("SQA-I", "scienceqa_img", "exact_match"),
    Benchmark("GQA", "gqa", "exact_match"),
    Benchmark("VQAv2", "vqav2_val", "exact_match", note="validation split, not the test server's test-dev"),
    Benchmark("POPE", "pope", "pope_f1_score", note="F1 of all questions at once, not the mean of three parts"),
    Benchmark("MME-P", "mme", "mme_perception_score", scale=1, maximum=2000),
    Benchmark("MME-C", "mme", "mme_cognition_score", scale=1, maximum=800),
    Benchmark("MMBench", "mmbench_en_dev_static", "gpt_eval_score", scale=1, note="letters found by rules, no judge"),
    Benchmark("LLaVA-W", "llava_in_the_wild", "gpt_eval_llava_all", scale=1, note=JUDGE),
    Benchmark("MM-Vet", "mmvet", "gpt_eval_score", scale=1, note=f"{JUDGE}; asked to think step by step"),
    Benchmark("MMMU", "mmmu_val", "mmmu_acc"),
)
"""The paper's eleven benchmarks, in the order of its Table 1."""
AVERAGE = "average"


def average(scores: dict[str, float]) -> float | None:
    """Mean of the eleven in per cent, MME's two by their maxima, as in the paper; None where one is missing."""
    if any(scores.get(benchmark.name) is None for benchmark in PAPER):
        return None
    return sum(100 * scores[benchmark.name] / benchmark.maximum for benchmark in PAPER) / len(PAPER)


def read_published() -> dict:
    """`{"source": ..., "models": {name: {visual tokens: {benchmark: score}}}}`."""
    published = json.loads((Path(__file__).parent / "published.json").read_text())
    for model, rows in published["models"].items():
        published["models"][model] = {int(m): scores for m, scores in rows.items()}
    return published
