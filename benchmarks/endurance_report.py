"""
The figure and the summary of a log of `endurance.py`, also of a run that was cut short:

    python benchmarks/endurance_report.py benchmarks/results/endurance.jsonl --figure docs/images/endurance.png
"""

import argparse
import json
from pathlib import Path
from statistics import median

from mqt_llava.plotting import BLUE, GREEN, INK, ORANGE, SKY, YELLOW, in_style, new_figure, save_figure


WARM_UP = 0.2  # of the samples, in which caches fill


def read_log(path: Path) -> dict[str, list[dict]]:
    """The log's documents by event. The last line of a run that was cut short may be half a one, and is left out."""
    events = {name: [] for name in ("begin", "sample", "comparison", "failure", "drained", "killed")}
    *lines, last = path.read_text().split("\n")
    for line in lines:
        event = json.loads(line)
        events[event["event"]].append(event)
    return events


def growth(samples: list[dict], process: str) -> tuple[float, float, float]:
    """
    Resident MB of a process: medians over the first and the last quarter of the samples after the warm-up, and the
    most of all.
    """
    used = [one["rss_mb"][process] for one in samples]
    kept = used[int(WARM_UP * len(used)) :]
    quarter = max(len(kept) // 4, 1)
    return median(kept[:quarter]), median(kept[-quarter:]), max(used)


def summarize(events: dict[str, list[dict]]) -> str:
    """What the log says, as a list in Markdown."""
    begin, samples = events["begin"][0], events["sample"]
    last = (events["drained"] or samples)[-1]
    outcomes = last["outcomes"]
    total = sum(outcomes.get(name, 0) for name in ("answered", "refused", "cancelled", "failure"))
    lines = [
        f"{last['seconds'] / 60:.0f} minutes of {begin['minutes']:g}, {begin['clients']} clients, "
        f"{begin['pictures']} pictures, {begin['cpu']}, {begin['vllm']}.",
        f"{total} requests: {outcomes.get('answered', 0)} answered, {outcomes.get('refused', 0)} refused as they must "
        f"be, {outcomes.get('cancelled', 0)} cancelled by their clients, {outcomes.get('failure', 0)} failed.",
        f"{outcomes.get('same', 0) + outcomes.get('different', 0)} answers compared with transformers': "
        f"{outcomes.get('different', 0)} differ.",
        f"{outcomes.get('resent', 0)} requests sent again after an internal error, with "
        f"{last.get('cache_misses', 'an unknown number of')} misses of the cache of pictures in the server's log.",
        f"{last['num_preemptions_total']:.0f} requests preempted for lack of KV blocks.",
    ]
    for process in ("server", "engine"):
        first, final, most = growth(samples, process)
        lines.append(
            f"Resident memory of the {process}: {first:.0f} MB in the first quarter after the warm-up, {final:.0f} MB "
            f"in the last one, {most} MB at most."
        )
    for drained in events["drained"]:
        cache, left = drained["encoder_cache"], drained["num_requests_running"] + drained["num_requests_waiting"]
        lines.append(f"After the load {left:.0f} requests run or wait, and hold {cache['held']} visual tokens.")
    for killed in events["killed"]:
        ends = ", ".join(f"{count} {name}" for name, count in killed["ends"].items())
        lines.append(
            f"Engine killed during {sum(killed['ends'].values())} streams: {ends}; all over after "
            f"{killed['seconds_until_all_ended']:g} s. The server's exit status: {killed['exit_status']}."
        )
    return "\n".join(f"- {line}" for line in lines)


@in_style
def draw(events: dict[str, list[dict]]):
    """Memory, caches and requests over time, as a matplotlib figure."""
    samples = events["sample"]
    minutes = [one["seconds"] / 60 for one in samples]
    figure = new_figure(6.4)
    memory, caches, requests = figure.subplots(3, 1, sharex=True)
    for process, color, style in (("server", YELLOW, "--"), ("engine", BLUE, "-")):
        memory.plot(minutes, [one["rss_mb"][process] for one in samples], style, color=color, label=process)
    memory.set_ylabel("resident memory, MB")
    memory.set_ylim(0, 1.2 * max(max(one["rss_mb"].values()) for one in samples))
    # What each sample says is a moment's; a line between two of them would say more than was seen.
    for name, color, marker, label in (
        ("held", SKY, ".", "encoder cache, held by requests"),
        ("stored", BLUE, "_", "encoder cache, stored"),
    ):
        shares = [100 * one["encoder_cache"][name] / one["encoder_cache"]["size"] for one in samples]
        caches.plot(minutes, shares, marker, color=color, label=label)
    used = [100 * one["kv_cache_usage_perc"] for one in samples]
    caches.plot(minutes, used, "x", color=ORANGE, markersize=4, label="KV cache")
    caches.set_ylabel("in use, %")
    caches.set_ylim(-5, 109)
    # As many are refused as cancelled: one line is seen through the other.
    for name, color, style, label in (
        ("answered", BLUE, "-", "answered"),
        ("cancelled", GREEN, "-", "cancelled by their clients"),
        ("refused", YELLOW, ":", "refused, as they must be"),
        ("failure", INK, "--", "failed"),
    ):
        requests.plot(minutes, [one["outcomes"].get(name, 0) for one in samples], style, color=color, label=label)
    requests.set_ylabel("requests so far")
    requests.yaxis.set_major_formatter("{x:,.0f}")
    requests.set_xlabel("minutes")
    for axis in (memory, caches, requests):
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--figure", type=Path, help="where to draw it")
    args = parser.parse_args()
    events = read_log(args.log)
    if not events["sample"]:
        raise SystemExit(f"{args.log} has no sample yet.")
    print(summarize(events))
    if args.figure:
        save_figure(draw(events), args.figure)


if __name__ == "__main__":
    main()
