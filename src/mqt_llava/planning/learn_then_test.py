"""
Which of several thresholds can be promised to keep a risk, by Learn then Test (Angelopoulos et al. 2021,
https://arxiv.org/abs/2110.01052), as CALM uses it to leave a decoder's layers early (Schuster et al. 2022,
https://arxiv.org/abs/2207.07061).

The thresholds and their order are fixed beforehand, from strict to loose. Of each, the hypothesis "its risk is above
the promised one" is tested with an exact binomial p-value. The first that cannot be rejected ends the sequence, so no
threshold needs a correction for the others.
"""

import math
from collections.abc import Sequence


MOST_PROMPTS = 10**6  # that are worth asking for


def binomial_cdf(count: int, number: int, share: float) -> float:
    """The probability of at most `count` successes in `number` draws, each with the probability `share`."""
    if count >= number:
        return 1.0
    logs = [math.log(share), math.log1p(-share), math.lgamma(number + 1)]
    return math.fsum(
        math.exp(logs[2] - math.lgamma(k + 1) - math.lgamma(number - k + 1) + k * logs[0] + (number - k) * logs[1])
        for k in range(count + 1)
    )


def num_promised(failures: Sequence[int], num_prompts: int, risk: float, confidence: float) -> int:
    """
    How many of the first thresholds keep `risk`, all of them together with probability `confidence`.

    Args:
        failures: Of `num_prompts` at each threshold, from strict to loose.
    """
    for index, count in enumerate(failures):
        if binomial_cdf(count, num_prompts, risk) > 1 - confidence:
            return index
    return len(failures)


def fewest_prompts(risk: float, confidence: float, share: float = 0.0) -> int | None:
    """
    How many prompts it takes to promise a risk where this share of them fails: none are enough where the share is not
    below the risk, nor where it would take over a million.
    """
    number = math.ceil(math.log(1 - confidence) / math.log1p(-risk))  # where none fails
    while share and number <= MOST_PROMPTS and binomial_cdf(round(share * number), number, risk) > 1 - confidence:
        number = math.ceil(1.02 * number)
    return number if share < risk and number <= MOST_PROMPTS else None
