"""What `gpu.py` found: its targets, and everything as Markdown."""

from collections.abc import Callable
from dataclasses import dataclass

from harness import spread, table


@dataclass(frozen=True)
class Target:
    """
    Args:
        limit: Of `value`, from above or, where `at_least`, from below.
        belongs: Whether a row is about it, given the batch size that targets are for.
        value: Of a row and the seconds that reading the decoder's weights takes.
        baseline: Where rows of several kinds of attention belong, the one counts in which this is least.
    """

    text: str
    limit: float
    at_least: bool
    belongs: Callable[[dict, int], bool]
    value: Callable[[dict, float], float]
    baseline: Callable[[dict], float]


def _own_median(row: dict) -> float:
    return row["mqt"]["median"]


TARGETS = (
    Target(
        "prefill at m = 256 over its roofline, batch {batch}", 1.25, False,
        lambda row, batch: (row["metric"], row["m"], row["batch"]) == ("prefill", 256, batch),
        lambda row, weight_seconds: row["mqt"]["over_roofline"], _own_median,
    ),
    Target(
        "first token of LLaVA over that at m = 16, batch {batch}", 4, True,
        lambda row, batch: (row["section"], row["m"], row["batch"]) == ("first_token", 16, batch),
        lambda row, weight_seconds: row["time_ratio"], lambda row: row["llava"]["median"],
    ),
    Target(
        "compiled decoding of a token at m = 16, batch 1, over reading the weights", 1.15, False,
        lambda row, batch: (row["metric"], row["m"], row["batch"], row["compiled"]) == ("per_token", 16, 1, True),
        lambda row, weight_seconds: row["mqt"]["median"] / weight_seconds, _own_median,
    ),
)  # fmt: skip


def evaluate_targets(size: dict, batch: int) -> list[dict]:
    """Each target with its value and whether it is met, missed or not measured. They are meant for 7B on an H200."""
    entries = []
    for target in TARGETS:
        limit = f"{'at least' if target.at_least else 'at most'} {target.limit}"
        entry = {"target": target.text.format(batch=batch), "limit": limit, "value": None, "result": "not measured"}
        if rows := [row for row in size["rows"] if target.belongs(row, batch)]:
            row = min(rows, key=target.baseline)
            value = target.value(row, size["weight_read_seconds"])
            is_met = value >= target.limit if target.at_least else value <= target.limit
            entry |= {"value": value, "result": "met" if is_met else "missed"}
            entry |= {key: row[key] for key in ("attention", "compiled", "m")}
        entries.append(entry)
    return entries


def row_line(row: dict) -> str:
    mqt, llava = row["mqt"], row["llava"]
    peaks = "-" if mqt["peak_bytes"] is None else f"{mqt['peak_bytes'] / 1e9:.1f} / {llava['peak_bytes'] / 1e9:.1f}"
    compiled = "yes" if row["compiled"] else "no"
    if mqt["cudagraph_skips"] or mqt["graph_breaks"]:
        compiled += f", {mqt['graph_breaks']} breaks, {mqt['cudagraph_skips']} skipped graphs"
    return (
        f"{row['section']}: {row['metric']} | {row['batch']} | {row['attention']} | {compiled} | {row['m']} "
        f"| {1e3 * mqt['median']:.2f} / {1e3 * llava['median']:.2f} "
        f"| {spread(row, 'time_ratio', 2)} "
        f"| {1e3 * mqt['roofline']:.2f} / {1e3 * llava['roofline']:.2f} "
        f"| {mqt['over_roofline']:.2f} / {llava['over_roofline']:.2f} | {peaks}"
    )


def size_report(name: str, size: dict) -> str:
    if "flops_per_second" not in size:
        return f"## {name}\n\nNot measured.\n"
    lines = [
        f"## {name}\n",
        f"{size['dtype']}, {size['rounds']} rounds, answers of {size['new_tokens']} tokens. Measured rates: "
        f"{size['flops_per_second'] / 1e12:.3g} TFLOP/s, {size['bytes_per_second'] / 1e12:.3g} TB/s. Reading the "
        f"decoder's weights takes {1e3 * size['weight_read_seconds']:.3f} ms.\n",
    ]
    targets = [
        f"{one['target']} | {one['limit']} | {'-' if one['value'] is None else format(one['value'], '.2f')} "
        f"| {one['result']}"
        for one in size["targets"]
    ]
    head = (
        "what | batch | attention | compiled | m | MQT-LLaVA / LLaVA, ms | LLaVA / MQT-LLaVA (rounds) "
        "| roofline, ms | time / roofline | peak, GB"
    )
    lines += [
        table("target | limit | value | result", targets),
        "",
        table(head, [row_line(row) for row in size["rows"]]),
    ]
    return "\n".join(lines) + "\n"


def copies_report(copies: dict) -> str:
    rates = copies["bytes_per_second"]
    return (
        f"Copying {copies['bytes'] / 1e6:.0f} MB of pixels to the GPU: {rates['pageable'] / 1e9:.1f} GB/s from "
        f"pageable, {rates['pinned'] / 1e9:.1f} GB/s from pinned memory, times as fast: "
        f"{spread(copies, 'time_ratio', 2)}.\n"
    )


def skipped_table(skipped: list[dict]) -> str:
    """A line for all that differ in batch size and m alone."""
    groups = {}
    for one in skipped:
        reason = " ".join(one["reason"].split()).replace("|", "/")
        kind = (*(str(one.get(key, "-")) for key in ("size", "section", "attention", "compiled")), reason)
        groups.setdefault(kind, []).append(one)
    lines = []
    for (*kind, reason), members in groups.items():
        batches = sorted({one["batch"] for one in members if "batch" in one})
        numbers = sorted({m for one in members for m in one.get("visual_tokens", ())})
        lines.append(" | ".join([*kind, ", ".join(map(str, batches)), ", ".join(map(str, numbers)), reason]))
    return table("size | section | attention | compiled | batch | m | why", lines)


def report(result: dict) -> str:
    lines = [
        "# MQT-LLaVA beside LLaVA with 576 tokens\n",
        f"{result['gpu'] or result['cpu']}, torch {result['torch']}, CUDA {result['cuda']}, transformers "
        f"{result['transformers']}, load {result['load_average_before']} before.\n",
    ]
    if "host_to_device" in result:
        lines.append(copies_report(result["host_to_device"]))
    lines += [size_report(name, size) for name, size in result["sizes"].items()]
    lines += ["## Not measured\n", skipped_table(result["skipped"])]
    return "\n".join(lines)
