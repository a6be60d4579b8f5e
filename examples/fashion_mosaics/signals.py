"""
What may tell that a level of visual tokens suffices: signals, and the rules that are made of them.

A rule gives each level of each prompt a score; an adaptive budget climbs to the first level whose score reaches a
threshold. What a rule has learned comes from a fitting half, here a mask over mosaics.
"""

from dataclasses import dataclass

import numpy as np
import torch
from collect_looks import Looks

from mqt_llava.models.adaptive_budget import CERTAIN, AdaptiveBudget


MOST = 12.0  # log-odds that count as certain


def unended(power: float) -> str:
    """The name of a rule."""
    return f"to the power of {power:g} unless ended"


def log_odds(probability: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probability) - np.log1p(-probability), -MOST, MOST)


def log_distance(distance: np.ndarray) -> np.ndarray:
    return np.log(np.clip(distance, np.exp(-MOST), None))


@dataclass
class Signals:
    """
    By mosaic, kind and level, each over the first places of an answer: `(mosaics, kinds, levels)`.

    Args:
        least: Probability of the best token, at the place where it is least.
        product: Of the best tokens' probabilities.
        margin: Least lead over the second best token.
        entropy: Largest entropy of the 20 best tokens and all others as one more, in nats.
        agreement: Share of the places before the greedy answer differs from that at the level below. At the lowest
            level, nothing is known of this and of `movement`: NaN.
        movement: Largest total variation distance to the distribution of the level below, over the 20 best tokens of
            both: 1 where the answers differed before.
        first: Probability of the first token.
        has_ended: Whether the answer ends within the places.
    """

    least: np.ndarray
    product: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    agreement: np.ndarray
    movement: np.ndarray
    first: np.ndarray
    has_ended: np.ndarray

    def known_at(self, level: int) -> np.ndarray:
        """All that is known at one level of it and of those below, `(mosaics, kinds, features)`."""
        features = []
        for k in range(level + 1):
            features += [log_odds(getattr(self, name)[..., k]) for name in ("least", "product", "margin", "first")]
            features += [log_distance(self.entropy[..., k]), self.has_ended[..., k]]
            if k:
                agreement = self.agreement[..., k]
                features += [agreement, agreement == 1, log_distance(self.movement[..., k])]
        return np.stack(features, axis=-1).astype(np.float64)


def first_places(looks: Looks, levels: list[int], num_places: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Probabilities of the best tokens at the first places of an answer, `(mosaics, kinds, levels, places, 20)`, and
    which places are behind its end: what would come there is certain.
    """
    is_behind = np.arange(num_places) >= looks.num_tokens[:, :, levels, None]
    probabilities = np.exp(looks.logprobs[:, :, levels, :num_places], dtype=np.float64)
    probabilities[is_behind] = np.eye(1, probabilities.shape[-1])
    return probabilities, is_behind


def confidence(looks: Looks, levels: list[int], num_places: int, unended_power: float) -> np.ndarray:
    """Of an [`AdaptiveBudget`], `(mosaics, kinds, levels)`; at the last level no threshold is above it."""
    num_tokens = torch.tensor(looks.num_tokens[:, :, levels])
    logprobs = torch.tensor(looks.logprobs[:, :, levels, :num_places, :2])
    logprobs[torch.arange(num_places) >= num_tokens[..., None]] = torch.tensor(CERTAIN)
    budget = AdaptiveBudget(num_probed_tokens=num_places, unended_power=unended_power)
    scores = budget.confidence_in(logprobs.double(), num_tokens <= num_places).numpy()
    scores[..., -1] = np.inf
    return scores


def measure(looks: Looks, levels: list[int], num_places: int) -> Signals:
    """
    Args:
        levels: Indices of the levels that are climbed.
        num_places: First tokens of an answer that are looked at.
    """
    probabilities, is_behind = first_places(looks, levels, num_places)
    best, second = probabilities[..., 0], probabilities[..., 1]
    ids = np.where(is_behind[..., None], -1, looks.ids[:, :, levels, :num_places])
    rest = np.clip(1 - probabilities.sum(-1), 0, None)
    outcomes = np.concatenate([probabilities, rest[..., None]], axis=-1)
    entropy = -np.where(outcomes > 0, outcomes * np.log(np.where(outcomes > 0, outcomes, 1)), 0).sum(-1)

    below, above = slice(None, -1), slice(1, None)
    is_same = np.cumprod(ids[:, :, above, :, 0] == ids[:, :, below, :, 0], axis=-1)
    distance = total_variation(probabilities, ids, rest)
    # Distributions at a place can be compared as long as the tokens before it are the same.
    is_comparable = np.concatenate([np.ones_like(is_same[..., :1]), is_same[..., :-1]], axis=-1)
    movement = np.where(is_comparable, distance, 1).max(-1)
    unknown = np.full((*movement.shape[:2], 1), np.nan)
    return Signals(
        least=best.min(-1),
        product=best.prod(-1),
        margin=(best - second).min(-1),
        entropy=entropy.max(-1),
        agreement=np.concatenate([unknown, is_same.mean(-1)], axis=-1),
        movement=np.concatenate([unknown, movement], axis=-1),
        first=best[..., 0],
        has_ended=looks.num_tokens[:, :, levels] <= num_places,
    )


def total_variation(probabilities: np.ndarray, ids: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Of each level to the one below, as far as the 20 best tell: `(mosaics, kinds, levels - 1, places)`."""
    distances = []
    for k in range(1, ids.shape[2]):
        is_same = ids[:, :, k, :, :, None] == ids[:, :, k - 1, :, None, :]
        pairs = np.minimum(probabilities[:, :, k, :, :, None], probabilities[:, :, k - 1, :, None, :])
        shared = (pairs * is_same).sum((-1, -2))
        distances.append(1 - shared - np.minimum(rest[:, :, k], rest[:, :, k - 1]))
    return np.clip(np.stack(distances, axis=2), 0, 1)


def fit_logistic(features: np.ndarray, truth: np.ndarray, weights: np.ndarray, decay: float = 1e-3):
    """
    A logistic regression of standardised features.

    Args:
        features: `(prompts, features)`.
        truth: Boolean `(prompts,)`.
        weights: Of the prompts, `(prompts,)`.
        decay: Of the squared weights.

    Returns:
        A function of features to log-odds.
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x, y, importance = (
        torch.tensor(array, dtype=torch.float64) for array in ((features - mean) / deviation, truth, weights)
    )
    weight, bias = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in (x.shape[1], 1))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="none")
        loss = (importance * losses).sum() / importance.sum() + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    w, b = weight.detach().numpy(), bias.item()
    return lambda features: (features - mean) / deviation @ w + b


@dataclass
class Rule:
    """
    Args:
        scores: `(mosaics, kinds, levels)`: the first level whose score reaches the threshold is taken, and the highest
            in any case.
        odds: Log-odds that the answer is that at M, fitted for each level.
        needs: `"20 best"` where a server returns what the rule needs.
        is_probability: Whether the scores are meant as probabilities.
        climbs: Whether each level is looked at on the way, or the first look alone decides.
    """

    scores: np.ndarray
    odds: np.ndarray | None = None
    needs: str = "20 best"
    is_probability: bool = False
    climbs: bool = True


LEAST = "least probability"
POWERS = (3, 10, 30, 100)  # of it where an answer has not ended


def make_rules(
    looks: Looks, levels: list[int], signals: Signals, num_places: int, is_fit: np.ndarray, weights: np.ndarray
) -> dict[str, Rule]:
    """
    Rules by name, the simplest first. The answers at the last level are what they are about.

    Args:
        levels: Indices of the levels that are climbed.
        signals: At these levels, over `num_places`.
        is_fit: Which mosaics are fitted on, `(mosaics,)`.
        weights: Of the kinds of questions, `(kinds,)`.
    """
    texts = looks.texts[:, :, levels]
    agrees, low = texts == texts[:, :, -1:], range(len(levels) - 1)
    importance = np.broadcast_to(weights, agrees.shape[:2])[is_fit].ravel()

    def fit(features_at, known_from: int = 0, first_look: bool = False, decay: float = 1e-3) -> np.ndarray:
        odds = np.full(agrees.shape, -np.inf)
        odds[..., -1] = np.inf
        for k in low[known_from:]:
            features = features_at(0 if first_look else k)
            model = fit_logistic(
                features[is_fit].reshape(-1, features.shape[-1]), agrees[is_fit][..., k].ravel(), importance, decay
            )
            odds[..., k] = model(features)
        return odds

    def single(name: str, transform, sign: int = 1, **kwargs) -> tuple[Rule, Rule]:
        """A signal with one threshold, and with one for each level."""
        values = getattr(signals, name)
        odds = fit(lambda k: transform(values[..., k : k + 1]), int(np.isnan(values[0, 0, 0])))
        scores = np.where(np.isnan(values), -np.inf, sign * values)
        scores[..., -1] = np.inf
        return Rule(scores, odds, **kwargs), Rule(odds, odds)

    def both(*columns):
        return lambda k: np.stack([column[..., k] for column in columns[: 2 if k else 1]], axis=-1)

    states = looks.states[:, :, levels].astype(np.float64)
    least, least_by_level = single("least", log_odds, is_probability=True)
    product, product_by_level = single("product", log_odds, is_probability=True)
    margin, _ = single("margin", log_odds)
    entropy, _ = single("entropy", log_distance, sign=-1)
    by_power = {}
    for power in POWERS:
        scores = confidence(looks, levels, num_places, power)
        odds = fit(lambda k, scores=scores: log_odds(scores[..., k : k + 1]))
        by_power[unended(power)] = Rule(scores, odds)
    agreement, _ = single("agreement", lambda share: share)
    movement, _ = single("movement", log_distance, sign=-1)
    with_agreement = fit(both(log_odds(signals.least), signals.agreement))
    with_movement = fit(both(log_odds(signals.least), log_distance(signals.movement)))
    known, first_look = fit(signals.known_at), fit(signals.known_at, first_look=True)
    probe, mean_probe = (fit(lambda k, which=which: states[:, :, k, which], decay=1e-2) for which in (0, 1))
    flat = states.reshape(*states.shape[:3], -1)
    everything = fit(lambda k: np.concatenate([signals.known_at(k), flat[:, :, k]], -1), decay=1e-2)
    return {
        LEAST: least,
        **by_power,
        "product of probabilities": product,
        "margin": margin,
        "entropy": entropy,
        "agreement with the level below": agreement,
        "movement since the level below": movement,
        "least probability, by level": least_by_level,
        "product, by level": product_by_level,
        "least probability and agreement": Rule(with_agreement, with_agreement),
        "least probability and movement": Rule(with_movement, with_movement),
        "all known so far": Rule(known, known),
        "the first look chooses": Rule(first_look, first_look, climbs=False),
        "last hidden state, first place": Rule(probe, probe, "hidden state"),
        "last hidden state, mean": Rule(mean_probe, mean_probe, "hidden state"),
        "all known and hidden states": Rule(everything, everything, "hidden state"),
    }
