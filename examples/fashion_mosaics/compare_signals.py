"""
Which signal tells best whether a level of visual tokens suffices?

    OMP_NUM_THREADS=1 python examples/fashion_mosaics/collect_looks.py --output runs/looks
    OMP_NUM_THREADS=1 python examples/fashion_mosaics/compare_signals.py --looks runs/looks \
        --output benchmarks/results/signals.json

Each rule of signals.py is fitted on the mosaics of one half of the test items and judged on those of the other, in
mixtures from coarse questions to fine ones alone. Fewer visual tokens at equal agreement count: the fewest with which
at most a share of the answers, the risk, differs from those at M; the threshold, one number for each rule, is taken
where that is so on the judged half. Intervals are of a bootstrap over mosaics, paired with the plainest rule, the
least probability of the first tokens.

A rule of the 20 best tokens' log-probabilities is better than that where, at a risk of 2%, its interval lies below
zero in every mixture, and at no risk and in no mixture above. The simplest kind of rule among these is the default of
`AdaptiveBudget`, with the power that the fitting half chooses: the one of fewest tokens at a risk of 2% among those
that need more than the plainest rule at no risk and in no mixture. Sets of levels and numbers of places are compared
by the default.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from collect_looks import Looks, read_looks
from signals import LEAST, POWERS, Rule, Signals, confidence, make_rules, measure, unended

from mqt_llava.files.atomic_file import write_atomically
from mqt_llava.models.adaptive_budget import AdaptiveBudget


NUM_THRESHOLDS = 400
NUM_SAMPLES = 1000
NUM_BINS = 10
ROUNDING = 1e-6
RISKS = (0.01, 0.02, 0.05)
DECIDING = 0.02
FITTED = "with_threshold_of_fitting_half"


def weigh_kinds(grain: list[str]) -> dict[str, np.ndarray]:
    """Weights of the kinds of questions, which sum to 1."""
    is_coarse, is_fine = (np.array([one == name for one in grain]) for name in ("coarse", "fine"))
    return {
        "3 coarse : 1 fine": 0.75 * is_coarse / is_coarse.sum() + 0.25 * is_fine / is_fine.sum(),
        "all kinds alike": np.full(len(grain), 1 / len(grain)),
        "fine alone": is_fine / is_fine.sum(),
    }


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float | None:
    """The probability that one that is true scores higher than one that is not; ties count half."""
    values, inverse = np.unique(scores, return_inverse=True)
    right = np.bincount(inverse, weights * truth, len(values))
    wrong = np.bincount(inverse, weights * ~truth, len(values))
    total = right.sum() * wrong.sum()
    return float((right * (wrong.cumsum() - wrong / 2)).sum() / total) if total else None


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error, in ten bins of equal width."""
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    return float(np.abs(np.bincount(bins, weights * (probabilities - truth), NUM_BINS)).sum() / weights.sum())


class Curve:
    """
    What a rule comes to with each threshold.

    Args:
        scores: `(mosaics, kinds, levels)`.
        climbs: As of [`Rule`].
        thresholds: `(thresholds,)`.
        levels: Visual tokens.
        agrees: Whether an answer is that at M, `(mosaics, kinds, levels)`.
        weights: Of the kinds.
    """

    def __init__(self, scores, climbs: bool, thresholds, levels: list[int], agrees, weights):
        highest, self.weights = np.maximum.accumulate(scores[..., :-1], axis=-1), weights
        stops = np.zeros((len(thresholds), *scores.shape[:2]), dtype=np.int8)
        for k in range(len(levels) - 1):
            stops += ~(highest[..., k] >= thresholds[:, None, None])
        mosaics, kinds = np.indices(scores.shape[:2], sparse=True)
        self.looks = (stops if climbs else np.minimum(stops, 1)) + 1  # `(thresholds, mosaics, kinds)`
        self.tokens_by_kind, self.differs_by_kind = (
            np.array(levels, dtype=np.int16)[stops],
            ~agrees[mosaics, kinds, stops],
        )
        weights = weights.astype(np.float32)
        self.tokens, self.differs = self.tokens_by_kind @ weights, self.differs_by_kind @ weights

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Visual tokens and the share that differs from M, `(thresholds,)`."""
        return self.tokens.mean(1), self.differs.mean(1)

    def choose(self, risk: float) -> int:
        """The index of the threshold of fewest tokens that keeps a risk."""
        tokens, differs = self.means()
        return int(np.where(differs <= risk + ROUNDING, tokens, np.inf).argmin())

    def by_kind(self, index: int) -> list[list[float]]:
        """With one threshold, visual tokens and the share that differs."""
        pairs = zip(self.tokens_by_kind[index].mean(0).tolist(), self.differs_by_kind[index].mean(0).tolist())
        return [[round(tokens, 3), round(differs, 4)] for tokens, differs in pairs]

    def points(self) -> list[list[float]]:
        """Visual tokens and the share that agrees with M, as much as a figure can show."""
        pairs = zip(*(values[:: max(1, len(values) // 100)].tolist() for values in self.means()))
        return [[round(tokens, 3), round(1 - differs, 4)] for tokens, differs in pairs]


def find_thresholds(scores: np.ndarray) -> np.ndarray:
    """That make a difference, with those of always and of never stopping early."""
    values = scores[..., :-1][np.isfinite(scores[..., :-1])]
    inner = np.unique(np.quantile(values, np.linspace(0, 1, NUM_THRESHOLDS))) if values.size else []
    return np.concatenate([[-np.inf], inner, [np.inf]])


def fewest_tokens(tokens: np.ndarray, differs: np.ndarray, risk: float) -> np.ndarray:
    """Of any threshold that keeps the risk: `(..., thresholds)` to `(...)`."""
    return np.where(differs <= risk + ROUNDING, tokens, np.inf).min(-1)


@dataclass
class Judged:
    """
    The fewest visual tokens with which a rule keeps each risk.

    Args:
        curve: Of the rule.
        tokens: By risk.
        resampled: By risk, in each sample of the bootstrap.
        chosen: By risk, the index of the threshold.
    """

    curve: Curve
    tokens: dict[float, float]
    resampled: dict[float, np.ndarray]
    chosen: dict[float, int]

    def against(self, other: "Judged") -> dict[str, dict]:
        """By risk, with 95% intervals."""
        return {
            str(risk): {
                "tokens": round(self.tokens[risk], 4),
                "tokens_95": interval(self.resampled[risk]),
                "difference": round(self.tokens[risk] - other.tokens[risk], 4),
                "difference_95": interval(self.resampled[risk] - other.resampled[risk]),
                "looks": round(float((self.curve.looks[self.chosen[risk]] @ self.curve.weights).mean()), 4),
            }
            for risk in RISKS
        }


def interval(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in np.quantile(values, (0.025, 0.975)).tolist()]


class Study:
    """
    One mixture.

    Args:
        looks: On all mosaics, in turns of the fitting and of the judged half.
        weights: Of the kinds of questions.
        num_places: First tokens of an answer that a rule looks at.
        seed: Of the bootstrap.
    """

    def __init__(self, looks: Looks, weights: np.ndarray, num_places: int, seed: int):
        self.looks, self.weights, self.num_places = looks, weights, num_places
        self.kinds, self.levels = looks.settings["kinds"], looks.settings["levels"]
        self.is_fit = np.arange(len(looks.texts)) % 2 == 0
        self.agrees = looks.texts == looks.texts[..., -1:]
        number = int((~self.is_fit).sum())
        # How often each mosaic is drawn, the same for all rules.
        counts = np.random.default_rng(seed).multinomial(number, [1 / number] * number, NUM_SAMPLES)
        self.samples = (counts / number).astype(np.float32)

    def indices(self, levels: list[int]) -> list[int]:
        return [self.levels.index(level) for level in levels]

    def trace(self, rule: Rule, levels: list[int], which: np.ndarray, thresholds: np.ndarray) -> Curve:
        agrees = self.agrees[which][..., self.indices(levels)]
        return Curve(rule.scores[which], rule.climbs, thresholds, levels, agrees, self.weights)

    def judge(self, rule: Rule, levels: list[int]) -> Judged:
        curve = self.trace(rule, levels, ~self.is_fit, find_thresholds(rule.scores[~self.is_fit]))
        resampled = self.samples @ curve.tokens.T, self.samples @ curve.differs.T
        return Judged(
            curve,
            {risk: float(fewest_tokens(*curve.means(), risk)) for risk in RISKS},
            {risk: fewest_tokens(*resampled, risk) for risk in RISKS},
            {risk: curve.choose(risk) for risk in RISKS},
        )

    def compare_rules(self, levels: list[int], signals: Signals) -> dict[str, dict]:
        """All rules by name, climbing these levels."""
        chosen = self.indices(levels)
        rules = make_rules(self.looks, chosen, signals, self.num_places, self.is_fit, self.weights)
        judged, results = {name: self.judge(rule, levels) for name, rule in rules.items()}, {}
        for name, rule in rules.items():
            at_risk, transferred = judged[name].against(judged[LEAST]), self.transfer(rule, levels)
            for risk, row in at_risk.items():
                row["by_kind"] = dict(zip(self.kinds, judged[name].curve.by_kind(judged[name].chosen[float(risk)])))
                row[FITTED] = transferred[float(risk)]
            results[name] = {
                "needs": rule.needs,
                "at_levels": {str(level): self.judge_level(rule, k, chosen[k]) for k, level in enumerate(levels[:-1])},
                "at_risk": at_risk,
                "curve": judged[name].curve.points(),
            }
        return results

    def judge_level(self, rule: Rule, k: int, level: int) -> dict[str, float | None]:
        """How well a rule tells at one level whether its answer is that at M."""
        importance = np.broadcast_to(self.weights, self.agrees.shape[:2])
        scores, odds, truth, importance = (
            array[~self.is_fit].ravel()
            for array in (rule.scores[..., k], rule.odds[..., k], self.agrees[..., level], importance)
        )
        if np.isinf(odds).all():  # nothing is known at the lowest level
            return {"auroc": None, "ece": None, "ece_fitted": None}
        return {
            "auroc": auroc(scores, truth, importance),
            "ece": calibration_error(scores, truth, importance) if rule.is_probability else None,
            "ece_fitted": calibration_error(1 / (1 + np.exp(-odds)), truth, importance),
        }

    def transfer(self, rule: Rule, levels: list[int]) -> dict[float, dict[str, float]]:
        """By risk, what the threshold that keeps it on the fitting half comes to on the judged one."""
        thresholds, results = find_thresholds(rule.scores[self.is_fit]), {}
        fitted = self.trace(rule, levels, self.is_fit, thresholds)
        best = [fitted.choose(risk) for risk in RISKS]
        tokens, differs = self.trace(rule, levels, ~self.is_fit, thresholds[best]).means()
        for number, risk in enumerate(RISKS):
            found = {
                "fitted_tokens": fitted.means()[0][best[number]],
                "tokens": tokens[number],
                "differ": differs[number],
            }
            results[risk] = {name: round(float(value), 4) for name, value in found.items()}
        return results

    def judge_default(self, levels: list[int], num_places: int) -> Judged:
        scores = confidence(self.looks, self.indices(levels), num_places, AdaptiveBudget.unended_power)
        return self.judge(Rule(scores), levels)

    def compare_levels(self, reference: list[int]) -> dict[str, dict]:
        """All sets of levels, against these."""
        *lower, most = self.levels
        default, results = self.judge_default(reference, self.num_places), {}
        for number in range(2 ** len(lower)):
            levels = [*(level for bit, level in enumerate(lower) if number >> bit & 1), most]
            results[" ".join(map(str, levels))] = self.judge_default(levels, self.num_places).against(default)
        return results

    def compare_places(self, levels: list[int]) -> dict[str, dict]:
        """Fewer or more of the first tokens, against as many as the rules look at."""
        default, most = self.judge_default(levels, self.num_places), self.looks.logprobs.shape[3]
        numbers = [2**power for power in range(most.bit_length())]
        return {str(number): self.judge_default(levels, number).against(default) for number in numbers}

    def bounds(self) -> dict:
        """The same level for all, and the lowest that answers as M does: visual tokens and share that agrees."""
        agrees = self.agrees[~self.is_fit]
        shares = (agrees * self.weights[:, None]).sum(1).mean(0)
        lowest = np.array(self.levels)[agrees.argmax(-1)] @ self.weights
        return {
            "fixed": [[level, round(share, 4)] for level, share in zip(self.levels, shares.tolist())],
            "oracle": [round(float(lowest.mean()), 4), 1.0],
        }


def find_better(mixtures: dict[str, dict], rules: str) -> list[str]:
    """The rules that a server can compute and that are better than the plainest, the simplest first."""
    better = []
    for name, rule in next(iter(mixtures.values()))[rules].items():
        rows = [of_mixture[rules][name]["at_risk"] for of_mixture in mixtures.values()]
        wins = all(row[str(DECIDING)]["difference_95"][1] < 0 for row in rows)
        loses = any(row[str(risk)]["difference_95"][0] > 0 for row in rows for risk in RISKS)
        if rule["needs"] == "20 best" and wins and not loses:
            better.append(name)
    return better


def choose_power(mixtures: dict[str, dict]) -> int:
    """The power that the fitting half chooses, by tokens relative to the plainest rule, alike for all mixtures."""

    def fitted(of_mixture: dict, name: str, risk: float) -> float:
        return of_mixture["rules"][name]["at_risk"][str(risk)][FITTED]["fitted_tokens"]

    def ratios(power: int, risk: float) -> list[float]:
        return [fitted(one, unended(power), risk) / fitted(one, LEAST, risk) for one in mixtures.values()]

    harmless = [power for power in POWERS if all(max(ratios(power, risk)) <= 1 for risk in RISKS)]
    return min(harmless, key=lambda power: sum(ratios(power, DECIDING)), default=1)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=Path, default=Path("runs/looks"), help="folder that collect_looks.py has made")
    parser.add_argument("--places", type=int, default=8, help="first tokens of an answer that count")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)

    looks = read_looks(args.looks)
    levels = looks.settings["levels"]
    if not 1 <= args.places <= looks.settings["places"]:
        parser.error(f"--places is {args.places}, but must be in 1..{looks.settings['places']}, those that were kept.")
    default = AdaptiveBudget().levels_for(levels[-1])
    results = {
        "looks": looks.settings,
        "mosaics": {"fitted on": (len(looks.texts) + 1) // 2, "judged": len(looks.texts) // 2},
        "places": args.places,
        "default_levels": default,
        "mixtures": {},
    }
    signals = [
        measure(looks, [levels.index(level) for level in climbed], args.places) for climbed in (levels, default)
    ]
    for name, weights in weigh_kinds(looks.settings["grain"]).items():
        study = Study(looks, weights, args.places, args.seed)
        results["mixtures"][name] = {
            "weights": dict(zip(study.kinds, weights.tolist())),
            **study.bounds(),
            "rules": study.compare_rules(levels, signals[0]),
            "rules_at_default_levels": study.compare_rules(default, signals[1]),
            "levels": study.compare_levels(default),
            "places": study.compare_places(default),
        }
    for rules in ("rules", "rules_at_default_levels"):
        results[f"better_{rules}"] = find_better(results["mixtures"], rules)
    results["chosen_power"] = choose_power(results["mixtures"])
    if args.output:
        write_atomically(args.output, json.dumps(results) + "\n")
    return results


if __name__ == "__main__":
    main()
