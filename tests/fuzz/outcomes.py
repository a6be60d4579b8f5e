"""What a call under test came to."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


KINDS = ("right", "refused", "undecided", "wrong", "bad error")
RIGHT, REFUSED, EITHER = "right", "refused", "either"  # what the contract expects of a call


class Outcome(NamedTuple):
    kind: str
    message: str = ""
    result: Any = None  # what the call returned

    @property
    def is_failure(self) -> bool:
        return self.kind in ("wrong", "bad error")


def wrong(message: str) -> Outcome:
    return Outcome("wrong", message)


def names_one(message: str, names: Iterable[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) for name in names)


def attempt(
    call: Callable[[], Any], judge: Callable[[Any], Outcome], names: Iterable[str], expected: str = RIGHT
) -> Outcome:
    """
    Makes a call and judges it.

    Args:
        call: Makes it.
        judge: Compares what it returned with the oracle.
        names: Arguments of the call, one of which a refusal must name.
        expected: `RIGHT`, `REFUSED`, or `EITHER` where the contract allows both.
    """
    try:
        result = call()
    except Exception as error:
        name, text = type(error).__name__, f"{type(error).__name__}: {error}"
        if not isinstance(error, (ValueError, TypeError, OSError)):
            return Outcome("bad error", text)
        if not names_one(str(error), names):
            return Outcome("bad error", f"names no argument of the call: {text}")
        if expected == RIGHT:
            return wrong(f"refuses a legal call with a {name}: {error}")
        return Outcome("refused", text)
    if expected == REFUSED:
        return wrong("takes what must be refused")
    return judge(result)._replace(result=result)


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Of the verdicts on the parts of one answer, the one that counts."""
    return max(outcomes, key=lambda outcome: KINDS.index(outcome.kind), default=Outcome("right"))
