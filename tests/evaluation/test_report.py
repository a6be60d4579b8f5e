"""The table and the figure of a sweep; what is measured is never taken for what is published."""

import csv
import json
from dataclasses import fields

import pytest

from mqt_llava.evaluation import PAPER
from mqt_llava.evaluation.benchmarks import average, read_published
from mqt_llava.evaluation.figure import draw
from mqt_llava.evaluation.finished_tasks import FinishedTask
from mqt_llava.evaluation.report import Row, read_table, tabulate, to_markdown, write_table
from tests.builders.paths import REPOSITORY


def pair(task: str, m, metrics: dict, **intervals) -> FinishedTask:
    return FinishedTask(task, m, {task: metrics}, 10, 4.0, 50.0, 3.0, 1e9, 2.5, {task: intervals})


def paper_pairs(m, share: float) -> list[FinishedTask]:
    """Every benchmark at a share of its maximum."""
    metrics = {}
    for benchmark in PAPER:
        metrics.setdefault(benchmark.task, {})[benchmark.metric] = share * benchmark.maximum / benchmark.scale
    return [pair(task, m, figures) for task, figures in metrics.items()]


def test_the_published_figures_are_complete_and_have_the_published_averages():
    published = read_published()["models"]
    assert list(published["MQT-LLaVA 7B"]) == [2, 4, 8, 16, 36, 64, 144, 256]
    names = [benchmark.name for benchmark in PAPER]
    assert len(names) == 11
    for budgets in published.values():
        assert all(list(scores) == names for scores in budgets.values())
    means = {m: average(scores) for m, scores in published["MQT-LLaVA 7B"].items()}
    stated = {2: 48.97, 4: 50.81, 8: 53.34, 16: 56.08, 36: 57.45, 64: 58.27, 256: 59.36}
    assert {m: means[m] for m in stated} == pytest.approx(stated, abs=0.015)
    assert average(published["LLaVA-1.5 7B"][576]) == pytest.approx(59.2, abs=0.05)


def test_rows_of_the_papers_benchmarks_are_on_its_scale_and_beside_its_own():
    mme = {"mme_perception_score": 1400.5, "mme_cognition_score": 300.0}
    rows = tabulate([pair("gqa", 16, {"exact_match": 0.57}), pair("mme", 16, mme)], "mine")
    assert {row.source for row in rows} == {"measured", "published"}
    measured = {row.benchmark: row for row in rows if row.source == "measured"}
    assert {name: row.score for name, row in measured.items()} == pytest.approx(
        {"GQA": 57, "MME-P": 1400.5, "MME-C": 300}
    )
    assert all(
        (row.model, row.flops, row.seconds, row.questions) == ("mine", 1e9, 2.5, 10) for row in measured.values()
    )
    published = [row for row in rows if row.source == "published"]
    assert {row.benchmark for row in published} == {"GQA", "MME-P", "MME-C"} and len(published) == 3 * 9
    assert all(row.flops is None and row.seconds is None and row.model != "mine" for row in published)
    (gqa,) = [row for row in published if (row.benchmark, row.m, row.model) == ("GQA", 16, "MQT-LLaVA 7B")]
    assert gqa.score == 57.6


def test_the_average_is_there_where_all_eleven_are():
    rows = tabulate([*paper_pairs(4, 0.5), *paper_pairs(16, 0.75)[:-1]], "mine")
    assert [(row.m, row.score) for row in rows if row.benchmark == "average" and row.source == "measured"] == [
        (4, pytest.approx(50))
    ]
    assert len([row for row in rows if row.benchmark == "average" and row.source == "published"]) == 9


def test_other_tasks_have_a_row_for_each_metric_and_nothing_published():
    rows = tabulate([pair("mine", "auto", {"accuracy": 0.5, "row": 0.25})], "model")
    assert [(row.benchmark, row.score, row.m, row.source) for row in rows] == [
        ("mine accuracy", 0.5, "auto", "measured"),
        ("mine row", 0.25, "auto", "measured"),
    ]


def test_differences_from_the_papers_recipe_are_noted_with_the_measured_score():
    rows = tabulate([pair("vqav2_val", 4, {"exact_match": 0.6})], "mine")
    assert [bool(row.note) for row in rows if row.source == "measured"] == [True]


def test_the_table_is_written_and_read(tmp_path):
    rows = tabulate(paper_pairs(16, 0.5), "mine")
    write_table(rows, tmp_path)
    assert read_table(tmp_path / "results.json") == rows
    with open(tmp_path / "results.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    assert [line["source"] for line in lines] == [row.source for row in rows]
    assert float(lines[0]["score"]) == rows[0].score and lines[0]["m"] == "16"


def test_markdown_keeps_measured_and_published_in_lines_of_their_own():
    lines = to_markdown(tabulate(paper_pairs(16, 0.5) + paper_pairs("auto", 0.5), "mine")).splitlines()
    assert lines[0] == "| benchmark | model | source | 2 | 4 | 8 | 16 | 36 | 64 | 144 | 256 | 576 | auto |"
    (measured,) = [line for line in lines if line.startswith("| GQA | mine | measured |")]
    assert measured.split("|")[4:-1] == ["  "] * 3 + [" 50 "] + ["  "] * 5 + [" 50 "]
    (published,) = [line for line in lines if line.startswith("| GQA | MQT-LLaVA 7B | published |")]
    assert " 57.6 " in published.split("|")
    assert lines[2].startswith("| VizWiz") and lines[-1].startswith("| average")


def test_intervals_are_on_the_scale_of_the_score():
    (row, *_) = tabulate([pair("gqa", 16, {"exact_match": 0.5}, exact_match=[10, 0.25, 0.75])], "mine")
    assert (row.count, row.low, row.score, row.high) == (10, 25, 50, 75)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_all_panels_show_the_same_part_of_what_can_be_reached(count):
    rows = tabulate(paper_pairs(4, 0.5) + paper_pairs(16, 0.6) + paper_pairs("auto", 0.6), "mine")
    names = list(dict.fromkeys(row.benchmark for row in rows))[:count]
    axes = draw([row for row in rows if row.benchmark in names]).axes
    maxima = {benchmark.name: benchmark.maximum for benchmark in PAPER}
    shown = {tuple(share / maxima.get(axis.get_title(), 100) for share in axis.get_ylim()) for axis in axes[:count]}
    assert all(limits == pytest.approx(next(iter(shown))) for limits in shown)
    assert [axis.axison for axis in axes] == [True] * count + [False] * (-count % min(count, 4))


def test_the_figure_draws_measured_and_published_differently():
    from matplotlib.figure import Figure

    from mqt_llava.evaluation.figure import draw_panel

    rows = [row for row in tabulate(paper_pairs(4, 0.5) + paper_pairs(16, 0.6), "mine") if row.benchmark == "GQA"]
    lines = draw_panel(Figure().subplots(), rows)
    assert list(lines) == ["MQT-LLaVA 7B, published", "LLaVA-1.5 7B, published", "mine, measured"]
    published, _, measured = lines.values()
    assert list(measured.get_xdata()) == [4, 16] and list(measured.get_ydata()) == pytest.approx([50, 60])
    for style in ("get_color", "get_linestyle", "get_marker", "get_markerfacecolor"):
        assert getattr(published, style)() != getattr(measured, style)()


def test_counts_and_intervals_are_drawn():
    rows = tabulate([pair("mine", 4, {"row": 0.5, "most": 0.25}, row=[10, 0.25, 0.75])], "model")
    row, most = draw(rows).axes
    assert row.get_title() == "mine row\n10 questions" and most.get_title() == "mine most"
    (interval,) = row.collections
    assert interval.get_segments()[0].tolist() == [[4, 0.25], [4, 0.75]] and not most.collections


def test_scores_of_the_checkpoints_own_number_of_tokens_are_tabulated():
    rows = tabulate([pair("mine", None, {"accuracy": 0.5})], "model")
    assert "| own |" in to_markdown(rows)
    assert json.loads(json.dumps(rows[0].__dict__)) == Row(**rows[0].__dict__).__dict__


def test_the_page_names_every_benchmark_as_the_code_does():
    page = (REPOSITORY / "docs" / "evaluation.md").read_text()
    for benchmark in PAPER:
        assert f"| {benchmark.name} | `{benchmark.task}` | `{benchmark.metric}` |" in page
    for name in (field.name for field in fields(Row)):
        assert f"`{name}`" in page
