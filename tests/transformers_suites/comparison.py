"""What to say of the outcomes: counts by suite, and where a model differs from the one it is compared with."""

from collections import Counter


SUITES = ("model", "generation", "pipeline", "processor", "configuration")
OUTCOMES = ("passed", "failed", "skipped")
REFERENCE = "LLaVA"


def table(outcomes: list[dict]) -> str:
    """Counts by model and suite, in columns."""
    counts = Counter((row["model"], row["suite"], row["outcome"]) for row in outcomes)
    models = list(dict.fromkeys(row["model"] for row in outcomes))
    lines = [["", *(f"{model} {outcome}" for model in models for outcome in OUTCOMES)]]
    for suite in SUITES:
        lines.append([suite, *(str(counts[model, suite, outcome]) for model in models for outcome in OUTCOMES)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def differences(outcomes: list[dict], outcome: str) -> list[str]:
    """The tests with that outcome which pass for the reference."""
    passed = {
        (row["suite"], row["name"]) for row in outcomes if row["model"] == REFERENCE and row["outcome"] == "passed"
    }
    return [
        f"{row['model']}: {row['name']}"
        for row in outcomes
        if row["outcome"] == outcome and (row["suite"], row["name"]) in passed
    ]
