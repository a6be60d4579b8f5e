"""What a run comes to."""

import json
from collections import Counter
from pathlib import Path


EQUIVALENT = json.loads(Path(__file__).with_name("equivalent.json").read_text(encoding="utf-8"))


def reason_of_equivalence(result: dict) -> str | None:
    """Why no test can tell a survivor from the original, where that is argued."""
    reasons = [one["reason"] for one in EQUIVALENT if all(one[key] == result[key] for key in ("file", "diff"))]
    return reasons[0] if reasons and result["outcome"] == "survived" else None


def score(results: list[dict]) -> float:
    """Percent killed of those that are not equivalent."""
    judged = [result["outcome"] for result in results if reason_of_equivalence(result) is None]
    return 100 * judged.count("killed") / max(len(judged), 1)


def summary(results: list[dict]) -> str:
    """The survivors, and the figures."""
    lines = []
    for result in (result for result in results if result["outcome"] == "survived"):
        after = f"{result['num_run']} of {result['num_tests']} tests, {result['cpu_seconds']} s"
        lines += ["", f"survived {after}: {result['file']}:{result['lines'][0]} {result['operator']}", result["diff"]]
        if reason := reason_of_equivalence(result):
            lines.append(f"equivalent: {reason}")
    outcomes = Counter(result["outcome"] for result in results)
    num_equivalent = sum(reason_of_equivalence(result) is not None for result in results)
    num_cut = sum(result["outcome"] == "survived" and result["num_run"] < result["num_tests"] for result in results)
    return "\n".join([
        *lines, "",
        f"{len(results)} mutants: {outcomes['killed']} killed, {outcomes['survived']} survived, "
        f"{num_equivalent} of these equivalent, {num_cut} not by all their tests for want of time",
        f"score: {score(results):.1f}% of the others killed",
    ])  # fmt: skip
