"""
The scaling law of "Inference Optimal VLMs", fitted again to the scores that its authors published:

    python examples/scaling_law/scaling_law_report.py

Writes `docs/images/scaling_law.png` and prints the tables of docs/scaling_law.md, with 95% intervals. With your own
scores, in a file with the columns params_billion, tokens and score:

    python examples/scaling_law/scaling_law_report.py --scores sweep.csv --figure sweep.png
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import nnls

from mqt_llava.planning import Observation, ScalingFit, ScalingLaw, fit_scaling_law, read_observations, request_flops
from mqt_llava.plotting import COLOURS, INK, MARKERS, in_style, new_figure, save_figure


REPOSITORY = Path(__file__).parents[2]
PUBLISHED = json.loads((Path(__file__).parent / "published_scores.json").read_text())["tasks"]
TEXT_TOKENS = (0, 50)


def published_scores(task: str, doubts: list[dict] = ()) -> list[Observation]:
    """The table as it was published, save for the points in `doubts`, which take their other score or are left out."""
    scores = {(row["params_billion"], row["tokens"]): row["score"] for row in PUBLISHED[task]["rows"]}
    scores |= {(doubt["params_billion"], doubt["tokens"]): doubt["score"] for doubt in doubts}
    return [Observation(*point, score) for point, score in scores.items() if score is not None]


def variants(task: str) -> dict[str, list[Observation]]:
    """Tables by what is done about the points in doubt: nothing, each by itself, and all together."""
    doubts = PUBLISHED[task]["doubts"]
    tables = {"as published": published_scores(task)}
    for doubt in doubts:
        point = f"{doubt['params_billion']}B, {doubt['tokens']} tokens"
        change = f"without {point}" if doubt["score"] is None else f"{point}: {doubt['score']:.4f}"
        tables[change] = published_scores(task, [doubt])
    return {**tables, "both changes": published_scores(task, doubts)}


def best_tokens(fit: ScalingFit, law: ScalingLaw, text_tokens: float) -> float:
    """T of a law's optimum, the same for every budget; at most as many as were measured."""
    return law.optimal(1e12, text_tokens, max_tokens=max(point.tokens for point in fit.observations)).tokens


def residual_with(fit: ScalingFit, alpha: float, beta: float) -> float:
    """Root mean square of the residuals of the best A and D for these exponents, neither of them below 0."""
    figures = np.array(fit.observations)
    power_law = ScalingLaw(1, alpha, beta, 0).predict(figures[:, 0], figures[:, 1])
    _, norm = nnls(np.stack([power_law, np.ones(len(figures))], axis=1), 1 - figures[:, 2])
    return norm / np.sqrt(len(figures))


def cell(fit: ScalingFit, quantity, digits: int, interval: tuple[float, float] | None = None) -> str:
    value = getattr(fit.law, quantity) if isinstance(quantity, str) else quantity(fit.law)
    low, high = interval or fit.interval(quantity)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_fits(fits: dict[str, ScalingFit]) -> None:
    """A row for each table of scores."""
    titles = ["scores", "alpha", "beta", "D by bootstrap", "D by profile", "residual"]
    titles += ["beta / alpha", "best T at Q = 50"]
    print(f"\n| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    for title, fit in fits.items():
        cells = [cell(fit, "alpha", 3), cell(fit, "beta", 4), cell(fit, "D", 2)]
        cells.append(cell(fit, "D", 2, fit.profile_interval()))
        cells.append(f"{np.sqrt(np.square(fit.residuals).mean()):.4f}")
        cells.append(cell(fit, lambda law: law.beta / law.alpha, 2))
        cells.append(cell(fit, partial(best_tokens, fit, text_tokens=50), 1))
        print(f"| {title} | {' | '.join(cells)} |")


def print_profile(fit: ScalingFit, values: list[float]) -> None:
    """The best laws with other D."""
    print("\n| D | A | alpha | beta | squared error beside the best | best T at Q = 50 |")
    print("|---|---|---|---|---|---|")
    for D in values:
        law = fit.at(D)
        worse = ScalingFit(law, fit.observations, ()).squared_error / fit.squared_error
        cells = [f"{D:.3f}", f"{law.A:.3f}", f"{law.alpha:.4f}", f"{law.beta:.4f}", f"{worse:.2f}"]
        print(f"| {' | '.join(cells)} | {best_tokens(fit, law, 50):.1f} |")


def print_around_optimum(fit: ScalingFit, flops: float, text_tokens: int) -> None:
    """What other numbers of tokens cost, each with the model that the budget leaves room for."""
    print(f"\n| T at Q = {text_tokens}, {flops:.1e} FLOPs | N in billions | error |")
    print("|---|---|---|")
    best = round(best_tokens(fit, fit.law, text_tokens))
    for T in sorted({int(point.tokens) for point in fit.observations} | {best}):
        N = flops / request_flops(1, T, text_tokens)
        print(f"| {T} | {N:.1f} | {fit.law.predict(N, T):.4f} |")


def draw_panel(axis: Axes, fit: ScalingFit, Q: int, hollow: set[tuple[float, float]]) -> None:
    """A curve for each model, and the dotted line of what is best over their range."""
    sizes = sorted({point.params_billion for point in fit.observations})
    tokens = sorted({point.tokens for point in fit.observations})
    along = np.geomspace(tokens[0], tokens[-1], 100)
    for N, (color, marker) in zip(sizes, list(zip(COLOURS, MARKERS)) * len(sizes)):
        axis.plot(request_flops(N, along, Q), fit.law.predict(N, along), color=color)
        axis.plot([], [], f"{marker}-", color=color, label=f"{N:g} billion parameters")
        for point in [point for point in fit.observations if point.params_billion == N]:
            face = "white" if (N, point.tokens) in hollow else color
            flops = request_flops(N, point.tokens, Q)
            axis.plot(flops, 1 - point.score, marker, color=color, markerfacecolor=face)
    best = best_tokens(fit, fit.law, Q)
    free = ((-16, 10), "left") if best < tokens[-1] else ((-4, -14), "right")  # of other curves
    for T, (offset, side) in ((tokens[0], ((5, 6), "left")), (tokens[-1], free)):
        point = (request_flops(sizes[0], T, Q), fit.law.predict(sizes[0], T))
        words = f"{T:g} visual token{'s' * (T > 1)}"
        axis.annotate(words, point, offset, textcoords="offset points", ha=side, fontsize=9)
    N = np.geomspace(sizes[0], sizes[-1], 50)
    label = "best for these FLOPs"
    axis.plot(request_flops(N, best, Q), fit.law.predict(N, best), ":", color=INK, linewidth=2.5, label=label)
    if hollow:
        axis.plot([], [], "o", color=INK, markerfacecolor="white", label="hollow: a score in doubt")
    most = " (the most)" if best == tokens[-1] else ""
    axis.set_title(f"{Q} text tokens: best with {best:.3g} visual token{'s' * (best > 1)}{most}")
    axis.set_xscale("log")
    axis.margins(y=0.1)


@in_style
def draw(fits: dict[str, ScalingFit], in_doubt: dict[str, list[dict]]) -> Figure:
    """Error against FLOPs: a row for each fit, a column for each number of text tokens. Points in doubt are hollow."""
    figure = new_figure(1 + 3 * len(fits))
    axes = figure.subplots(len(fits), len(TEXT_TOKENS), sharey="row", squeeze=False)
    for row, (title, fit) in zip(axes, fits.items()):
        hollow = {(doubt["params_billion"], doubt["tokens"]) for doubt in in_doubt.get(title, [])}
        for axis, Q in zip(row, TEXT_TOKENS):
            draw_panel(axis, fit, Q, hollow)
        row[0].set_ylabel(f"error, {title}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    figure.supxlabel("FLOPs of the decoder for one request: 2 × parameters × (text tokens + visual tokens)")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, help="a .csv, .json or .jsonl file; by default what was published")
    parser.add_argument("--figure", type=Path, help="by default in docs/images, or beside the scores")
    args = parser.parse_args(argv)

    if args.scores is not None:
        drawn = {args.scores.stem: fit_scaling_law(read_observations(args.scores))}
        print_fits(drawn)
        save_figure(draw(drawn, {}), args.figure or args.scores.with_suffix(".png"))
        return

    drawn = {}
    for task, published in PUBLISHED.items():
        fits = {title: fit_scaling_law(table) for title, table in variants(task).items()}
        drawn[task] = fits["as published"]
        exponents = published["published"]
        residual = residual_with(drawn[task], **exponents)
        print(f"\n{task}: published alpha = {exponents['alpha']}, beta = {exponents['beta']}")
        print(f"with the best A and D they leave a residual of {residual:.4f}")
        print_fits(fits)
        print_profile(drawn[task], [0, 0.067, 0.1, 0.2, 0.3])
        if drawn[task].law.beta < drawn[task].law.alpha:
            print_around_optimum(drawn[task], request_flops(7, 14, 50), 50)
    in_doubt = {task: published["doubts"] for task, published in PUBLISHED.items()}
    save_figure(draw(drawn, in_doubt), args.figure or REPOSITORY / "docs" / "images" / "scaling_law.png")


if __name__ == "__main__":
    main()
