"""
What README, docs and model cards say of what was measured, put together from the results: sentences, or parts of them,
and rows of tables. `test_numbers.py` looks for them, and for numbers of the prose that are not among them.

A new number: one more string in the list of its page. One that nobody measured: in `GIVEN`.
"""

import json
from functools import cache
from math import ceil, comb
from pathlib import Path
from statistics import fmean, linear_regression

import torch

from mqt_llava import MQTLlavaConfig
from mqt_llava.evaluation.benchmarks import AVERAGE, average, read_published
from mqt_llava.planning import request_cost
from tests.builders.paths import CHECKPOINT, REPOSITORY
from tests.builders.scripts import load_script


BENCHMARKS = REPOSITORY / "benchmarks" / "results"
spread = load_script("benchmarks/harness.py").spread
KINDS = {
    "position": ("fine", "What is in the top row, column 3?"),
    "row": ("fine", "List the items in the second row."),
    "column": ("fine", "List the items in column 4."),
    "list": ("fine", "List the items."),
    "presence": ("coarse", "Is there any footwear?"),
    "most": ("between", "What is there most of?"),
}


@cache
def results(path: Path) -> dict:
    return json.loads(path.read_text())


def benchmark(name: str) -> dict:
    return results(BENCHMARKS / f"{name}.json")


def accuracies(kind: str) -> dict[int, float]:
    """Per cent of right answers of the embedded checkpoint by m."""
    figures = results(CHECKPOINT / "evaluation.json")["results"][kind]["accuracy"]
    return {int(m): 100 * share for m, share in figures.items()}


def cells(values: list) -> str:
    return " | ".join(map(str, values))


def rounded(*values: float) -> list[str]:
    return [f"{value:.2f}" for value in values]


def published(m: int, model: str = "MQT-LLaVA 7B") -> dict[str, float]:
    """Scores of the paper at m, with their mean."""
    scores = read_published()["models"][model][m]
    return {**scores, AVERAGE: average(scores)}


def smallest(scores: dict[int, float], share: float) -> int:
    return min(m for m, score in scores.items() if score >= share * scores[max(scores)])


def adaptive_sentence(middle: str, close: str) -> str:
    figures = results(CHECKPOINT / "adaptive.json")
    low, high = sorted(-100 * bound for bound in figures["difference_95"])
    return (
        f"{figures['mean_visual_tokens']:.2f} of {middle}{-100 * figures['difference']:.2f} points {close} "
        f"(95% interval {low:.2f} to {high:.2f}"
    )


def first_tokens(batch: int, new_tokens: int = 1) -> dict[int, dict]:
    rows = benchmark("first_token")["first_token"]
    return {row["m"]: row for row in rows if (row["batch"], row["new_tokens"]) == (batch, new_tokens)}


def speed_ups() -> tuple[float, float, float]:
    """A first token at m = 16 beside m = 256: on an EPYC; the least and the greatest on a Xeon."""
    seconds = {(row["setting"], row["m"]): row["first_token"]["median"] for row in benchmark("cpu_settings")["rows"]}
    ratios = [seconds[setting, 256] / seconds[setting, 16] for setting, m in seconds if m == 16]
    rows = first_tokens(batch=1)
    return rows[256]["mqt"]["median"] / rows[16]["mqt"]["median"], min(ratios), max(ratios)


def tera_flops(m: int, text_tokens: int = 58) -> float:
    return request_cost(MQTLlavaConfig(), text_tokens=text_tokens, num_visual_tokens=m).flops.total / 1e12


def published_tera_flops() -> dict[int, float]:
    flops = results(REPOSITORY / "figures" / "published.json")["tflops"]
    return {int(m): value for name in ("LLaVA-1.5 7B", "MQT-LLaVA 7B") for m, value in flops[name].items()}


def published_ratio() -> str:
    flops = published_tera_flops()
    return f"at 256 tokens level with LLaVA-1.5 at 576, which costs {flops[576] / flops[256]:.1f} times the TFLOPs"


def readme():
    yield published_ratio()
    yield adaptive_sentence("its 16 tokens on average, and is right ", "less often than with all 16")
    fixed = dict(results(CHECKPOINT / "adaptive.json")["judged"]["fixed"])
    yield f"always 4 tokens cost {100 * (fixed[16] - fixed[4]):.2f} points"
    kinds = {"presence": "coarse", "most": "counting", "position": "fine"}
    for kind, name in kinds.items():
        values = [f"{value:.1f}" for value in accuracies(kind).values()]
        yield f'| {name}: "{KINDS[kind][1]}" | {cells(values)} |'
    means = [published(m)[AVERAGE] for m in (16, 64, 256)] + [published(576, "LLaVA-1.5 7B")[AVERAGE]]
    yield f"| mean of eleven benchmarks | {cells([f'{mean:.2f}' for mean in means])} |"
    yield f"| TFLOPs of a prompt | {cells(rounded(*(published_tera_flops()[m] for m in (16, 64, 256, 576))))} |"
    epyc, _, most = speed_ups()
    yield f"comes {epyc:.1f} to {most:.1f} times as fast at m = 16 as at m = 256"


def choosing():
    yield published_ratio()
    tasks = read_published()["models"]["MQT-LLaVA 7B"]
    for name in tasks[256]:
        scores = {m: scores[name] for m, scores in tasks.items()}
        yield f"| {name} | {smallest(scores, 0.95)} | {smallest(scores, 0.98)} |"
    for kind, (_, question) in KINDS.items():
        scores = accuracies(kind)
        yield f'| "{question}" | {smallest(scores, 0.95)} | {smallest(scores, 0.98)} |'
    visual = tera_flops(8) - tera_flops(8, text_tokens=50)  # a visual token costs what one of the text does
    yield f"{tera_flops(8):.3f} TFLOPs at m = 8, of which the visual tokens are {visual:.3f}"
    yield f"at 7B about {1000 * (tera_flops(65) - tera_flops(64)):.0f} GFLOPs, whatever m is"


def adaptive():
    figures = results(CHECKPOINT / "adaptive.json")
    stops = figures["stops"]
    yield f"{stops['1']} questions stopped at 1 token, {stops['4']} at 4, and {stops['16']} at 16"
    fixed = dict(figures["judged"]["fixed"])
    for m in (4, 8, 16):
        yield f"| m = {m} | {fixed[m]:.2%} | {m} |"
    low, high = (100 * bound for bound in figures["difference_95"])
    yield f"{100 * figures['difference']:.2f} points, 95% interval {low:.2f} to {high:.2f}"
    yield f"the target was {100 * figures['target']:.1f} on the other half"
    yield f"{benchmark('calibration_time')['ratio']:.2f} times as long as plain"
    agree = benchmark("promise")["agree_at_levels"]
    yield f"{agree[0]:.1%} agree with the answer at M at 1 token, {agree[1]:.1%} at 4"
    tail = sum(comb(200, k) * 0.05**k * 0.95 ** (200 - k) for k in range(16))
    yield f"up to 15 of 200 in {tail:.0%} of such tests"
    enough = next(n for n in range(1, 1000) if 0.98**n <= 0.05)
    yield f"A promise of 2% with confidence 95% takes {enough} prompts"
    halves = {(row["batch"], row["new_tokens"], row["ends_at"]): row for row in benchmark("first_token")["adaptive"]}
    for row in benchmark("first_token_float32")["adaptive"]:
        case = (row["batch"], row["new_tokens"], row["ends_at"])
        times = [one[key] for one in (halves[case], row) for key in ("time_ratio", "time_over_prediction")]
        yield f"| {cells([*case, *rounded(row['flops_ratio'], *times)])} |"
    for batch in (1, 4):
        for m, row in first_tokens(batch).items():
            seconds = f"{row['llava']['median']:.1f} s / {row['mqt']['median']:.1f} s"
            yield f"| {cells([batch, m, seconds, spread(row, 'time_ratio', 2)])} "
            yield f"| {cells(rounded(row['flops_ratio'], row['share']))} |"
    for row in benchmark("first_token")["image_path"]:
        yield f"| {row['batch']} | {row['m']} | {spread(row, 'time_ratio', 2)} |"


def demo():
    figures = benchmark("known_images")["results"]
    photographs = [row for name, row in figures.items() if name.startswith("photographs")]
    number, marked = (sum(row[key] for row in photographs) for key in ("pictures", "marked"))
    yield f"Of {number} photographs, {marked} are marked"
    mosaics = figures["held-out mosaics"]
    yield f"of {mosaics['pictures']} held-out mosaics, {mosaics['marked']} are"


def checkpoints():
    yield f"takes {benchmark('convert_7b')['peak_rss_anon_bytes'] / 1e9:.2f} GB of anonymous memory"


def elasticize():
    report = load_script("examples/fashion_mosaics/compare_elastic_report.py")
    found = report.read_by_seed(BENCHMARKS / "elastic_ranking.jsonl")
    right = {key: fmean(seeds.values()) for key, seeds in found.items()}
    places = [kind for kind, (grain, _) in KINDS.items() if grain == "fine"]
    behind = [right["fit", kind, 16] - right["coarse", kind, 16] for kind in places]
    yield f"were right {min(behind):.0f} to {max(behind):.0f} points less often about places"
    gaps = {kind: right["llava", kind, 64] - right["fit_squares", kind, 16] for kind in KINDS}
    assert gaps.pop("most") > 2
    yield f"`fit_squares` is within {max(gaps.values()):.1f} points of the LLaVA on all but counting"
    unseen = max(right["fit_powers", kind, 8] - right["fit_squares", kind, 8] for kind in KINDS)
    yield f"it is up to {unseen:.0f} points behind `fit_powers`"
    taught = {m: [right["fit_powers", kind, m] - right["fit_labels", kind, m] for kind in places] for m in (4, 16)}
    yield f"answers {min(taught[16]):.0f} to {max(taught[16]):.0f} points more about places with 16 tokens"
    assert {round(-less) for less in taught[4]} == {2}
    yield "and 2 points less with 4"
    elastic = {variant for variant, _, m in right if m == 4}
    least = min(right["llava", kind, 64] - right[variant, kind, 4] for variant in elastic for kind in places)
    yield f"answers about places are {int(least)} points or more below the LLaVA, in each of these ways"
    yield from nested(places)


def nested(places: list[str]):
    """Of docs/elasticize.md."""
    report = load_script("examples/fashion_mosaics/compare_elastic_report.py")
    found = report.read_by_seed(BENCHMARKS / "elastic.jsonl")

    def behind(variant: str, m: int) -> list[float]:
        return [-fmean(report.differences(found, (variant, m), ("llava", 64), kind)) for kind in places]

    for m, text in ((8, "`nested` is {} to {} points below the LLaVA on places"), (4, "it is {} to {} points below")):
        yield text.format(*(f"{end(behind('nested', m)):.0f}" for end in (min, max)))
        yield "and `no_levels` {} to {}.".format(*(f"{end(behind('no_levels', m)):.0f}" for end in (min, max)))
    worst = max(max(behind(variant, 16)) for variant in ("nested", "no_levels"))
    yield f"both are within {worst:.1f} points of the LLaVA on places"

    def below(kind: str, m: int) -> str:
        """Means: of two runs and of one."""
        return f"{fmean(found['no_levels', kind, m].values()) - fmean(found['nested', kind, m].values()):.0f}"

    yield f"{below('presence', 1)} points below `no_levels` on presence and {below('most', 1)} on"
    yield f"counting is still {below('most', 4)}, {below('most', 8)} and {below('most', 16)} points below"


def evaluation():
    yield published_ratio()


def planning():
    rows = benchmark("question_pass")["rows"]
    yield f"within {ceil(max(abs(100 * row['time_over_prediction'] - 100) for row in rows))}%."
    theirs = published_tera_flops()
    for m, flops in theirs.items():
        yield f"| {m}{' (LLaVA-1.5)' if m == 576 else ''} | {flops:.2f} |"
    slope, _ = linear_regression(*zip(*[(m, flops) for m, flops in theirs.items() if m not in (144, 576)]))
    yield f"rises by {1000 * slope:.1f} GFLOPs per visual token"
    yield f"which is 2 x {500 * slope:.1f} billion weights"
    ours = {m: 1000 * (tera_flops(m + 1) - tera_flops(m)) for m in (8, 100, 255)}
    yield f"ours rises by {ours[8]:.1f} at m = 8 and {ours[255]:.1f} at m = 256"
    yield f"while this decoder rises by {ours[100]:.1f} to {ours[255]:.1f}"
    below, above = (1000 * (theirs[b] - theirs[a]) / (b - a) for a, b in ((64, 144), (144, 256)))
    yield f"rises by {below:.1f} GFLOPs per token and from 144 to 256 by {above:.1f}"
    slope = (theirs[256] - theirs[64]) / 192
    yield f"gives {theirs[64] + 80 * slope:.2f} TFLOPs"
    yield f"{theirs[144]} belongs to m = {64 + (theirs[144] - theirs[64]) / slope:.0f}"
    differences = {m: abs(100 * tera_flops(m) / flops - 100) for m, flops in theirs.items() if m != 576}
    yield f"Ours is {differences.pop(144):.0f}% above the published point at m = 144"
    yield f"The next worst is m = 36, {differences.pop(36):.0f}% off"
    yield f"The others are within {max(differences.values()):.1f}%"
    yield f"the {theirs[8]:.2f} TFLOPs at m = 8"


def quecc():
    means = study_means("compare_quecc_report", "mqt_vs_quecc")
    places = [means("quecc", kind, 16) - means("mqt", kind, 16) for kind in ("position", "row", "column")]
    yield f"with 16 tokens QueCC is {min(places):.0f} to {max(places):.0f} points ahead"
    yield f"QueCC is {means('quecc', 'most', 1) - means('mqt', 'most', 1):.0f} points ahead with one token"
    runs = [json.loads(line) for line in (BENCHMARKS / "mqt_vs_quecc.jsonl").read_text().splitlines()]
    yield f"at m = 4 instead of {means('mqt', 'position', 4):.1f}"
    seeds = [run["evaluation"]["presence"]["accuracy"].get("4") for run in runs if run["variant"] == "quecc_4"]
    yield "whose seeds reach {:.1f}, {:.1f} and {:.1f} per cent".format(*(100 * seed for seed in seeds))
    yield f"tells {accuracies('position')[4]:.1f} per cent of single places"


def serving():
    figures = benchmark("serving_sizes")
    yield load_script("benchmarks/serving_sizes.py").report(figures).split("\n\n")[0]
    rows = {(row["section"], row["m"]): row for row in figures["rows"]}
    few, llava = rows["cold", "16"], rows["cold", "LLaVA"]
    yield f"answers {few['over_llava']:.1f} times as many requests"
    yield f"{few['share']:.0%} of what the FLOPs predict"
    yield f"after {few['first_token_median']:.1f} s instead of {llava['first_token_median']:.1f} s"
    shared = figures["sharing"]
    least, most = shared["over_nothing_shared_by_round"]
    yield f"{shared['over_nothing_shared']:.1f} times as fast as with nothing shared ({least:.1f} to {most:.1f} in a"
    yield f"the FLOPs predict {shared['predicted']:.1f}"
    cold, again = (figures["climbing"][name] for name in ("cold", "asked again"))
    yield f"{cold['over_m']:.2f} times as long as M with a cold picture (FLOPs: {cold['predicted']:.2f})"
    yield f"{again['over_m']:.2f} times for a picture that is asked again ({again['predicted']:.2f})"
    report = load_script("benchmarks/endurance_report.py")
    events = report.read_log(BENCHMARKS / "endurance.jsonl")
    (drained,), (killed,) = events["drained"], events["killed"]
    ends = drained["outcomes"]
    counts = [ends[name] for name in ("answered", "refused", "cancelled", "failure")]
    text = "{:,} requests: {:,} answered, {:,} refused as they must be, {:,} cancelled by their clients, {:,} counted"
    yield text.format(sum(counts), *counts)
    yield f"{ends['same']:,} answers compared with transformers': none differs"
    yield f"{ends['resent']} requests sent again"
    yield f"log has {drained['cache_misses']} such misses"
    (a, b), (c, d) = (report.growth(events["sample"], name)[:2] for name in ("server", "engine"))
    yield f"{a:.0f} and {b:.0f} MB of the server, {c:.0f} and {d:.0f} MB of the engine"
    yield f"within {killed['seconds_until_all_ended']:.2f} s"


def speed():
    epyc, least, most = speed_ups()
    yield f"comes {least:.1f} to {most:.1f} times as fast in these settings"
    yield f"{epyc:.1f} times as fast, and {first_tokens(batch=1)[16]['time_ratio']:.1f} times as fast as LLaVA's"
    rows = {(row["setting"], row["m"]): row["per_token"]["median"] for row in benchmark("cpu_settings")["rows"]}
    compiled, plain = (1000 * rows[name, 256] for name in ("bfloat16, sdpa, compiled", "bfloat16, sdpa"))
    yield f"took {compiled:.0f} ms instead of {plain:.0f}"
    shares = [row["share_of_image_path"] for row in benchmark("resampler_attention")["rows"]]
    yield f"it is {min(shares):.0%} to {max(shares):.0%} of the image path"
    config, decoder = MQTLlavaConfig(), MQTLlavaConfig().text_config
    width, layers = decoder.hidden_size, decoder.num_hidden_layers
    linear = layers * width * (4 * width + 3 * decoder.intermediate_size)
    half = request_cost(config, num_visual_tokens=1, text_tokens=1, dtype=torch.bfloat16).weight_bytes.total
    shares = [1 - linear * (2 - size) / half for size in (1, 0.5 + 4 / 64)]  # nf4: a float32 for each 64 weights
    yield "int8 has {:.0%} of the bytes in bfloat16, nf4 {:.0%}".format(*shares)


def study_means(script: str, log: str):
    """Per cent of right answers as the mean over the seeds; of `qt` at m of the model for this m."""
    values = load_script(f"examples/fashion_mosaics/{script}.py").read_accuracies(BENCHMARKS / f"{log}.jsonl")

    def mean(variant: str, kind: str, m: int) -> float:
        name = variant if (variant, kind, m) in values else f"{variant}_{m}"
        return fmean(values[name, kind, m])

    return mean


def training():
    means = study_means("compare_report", "mqt_vs_qt")
    yield f"listing everything is {means('qt', 'list', 16) - means('mqt', 'list', 16):.1f} points worse"
    behind = [means("qt", "most", m) - means("mqt", "most", m) for m in (1, 4, 16)]
    yield f"at every m, by {min(behind):.0f} to {max(behind):.0f} points"
    runs = [json.loads(line) for line in (BENCHMARKS / "mqt_vs_qt.jsonl").read_text().splitlines()]
    seeds = sorted(100 * run["evaluation"]["presence"]["accuracy"]["4"] for run in runs if run["variant"] == "mqt")
    yield f"({seeds[0]:.0f}% where the others have {seeds[1]:.0f}%)"
    (costs,) = {run["cost_of_nesting"] for run in runs if run.get("cost_of_nesting")}
    yield f"at once cost {costs:.2f} times the FLOPs of one of the three"
    for size in ("tiny", "mid"):
        for stage, cases in benchmark(f"training_step_{size}")["stages"].items():
            for case, m in (("uniform", "2, 4, ..., 256"), ("256", "256")):
                one = cases[case]
                seconds = f"{one['mqt']['seconds']:.2f} s / {one['llava']['seconds']:.2f} s"
                ratio = {name: f"{value:.2f}" for name, value in one["ratio"].items()}
                row = [size, stage, m, seconds, f"**{ratio['seconds']}**", ratio["flops"], ratio["kept_bytes"]]
                yield f"| {cells(row)} |"
    for case, m in (("uniform", "2, 4, ..., 256"), ("256", "256")):
        ratio = benchmark("training_step_distilled_tiny")["distillation"]["1"][case]["ratio"]
        row = [f"{ratio[name]:.2f}" for name in ("flops", "kept_bytes", "alive_bytes")]
        yield f"| {m} | {cells(row)} |"


def visualization():
    yield f"({benchmark('heatmap_mass')['right_answers']} of the answers are right)"
    *shares, most = (f"{share:.1f}" for share in accuracies("position").values())
    yield f"are {', '.join(shares)} and {most} per cent"


def card_7b():
    for m in read_published()["models"]["MQT-LLaVA 7B"]:
        scores = published(m)
        yield f"| {m} | {cells([*list(scores.values())[:-1], f'{scores[AVERAGE]:.2f}'])} |"
    llava = published(576, "LLaVA-1.5 7B")
    yield f"| LLaVA-1.5, 576 | {cells([*list(llava.values())[:-1], f'{llava[AVERAGE]:.2f}'])} |"


def card_tiny():
    figures = results(CHECKPOINT / "evaluation.json")["results"]
    for kind, (grain, question) in KINDS.items():
        values = [f"{value:.1f}" for value in accuracies(kind).values()]
        yield f'| "{question}" | {grain} | {cells(values)} | {figures[kind]["questions"]} |'
    gains = [accuracies(kind)[16] - accuracies(kind)[1] for kind, (grain, _) in KINDS.items() if grain == "fine"]
    yield f"fine ones gain {min(gains):.0f} to {max(gains):.0f} points"
    yield adaptive_sentence("16 tokens on average at ", "less accuracy")


def card_llava():
    figures = results(REPOSITORY / "model_cards" / "llava-tiny" / "evaluation.json")["results"]
    for kind, (_, question) in KINDS.items():
        yield f'| "{question}" | {100 * figures[kind]["accuracy"]["64"]:.1f} | {figures[kind]["questions"]} |'


MEASURED = {
    "README.md": readme,
    "docs/adaptive.md": adaptive,
    "docs/checkpoints.md": checkpoints,
    "docs/choosing.md": choosing,
    "docs/demo.md": demo,
    "docs/elasticize.md": elasticize,
    "docs/evaluation.md": evaluation,
    "docs/planning.md": planning,
    "docs/quecc.md": quecc,
    "docs/serving.md": serving,
    "docs/speed.md": speed,
    "docs/training.md": training,
    "docs/visualization.md": visualization,
    "model_cards/llava-tiny/README.md": card_llava,
    "model_cards/mqt-llava-7b/README.md": card_7b,
    "model_cards/mqt-llava-tiny/README.md": card_tiny,
}

# Sizes, settings and bounds, what is published, and what another test compares.
PARAMETERS = "1.7 million parameters"
BILLIONS = "1.1 billion parameters"
READING = "about 0.1 point"  # the precision of numbers that are read off plots
GIVEN = {
    "README.md": [PARAMETERS, "a 1.1B decoder", "Apache-2.0"],
    "docs/adaptive.md": [
        *[
            "a confidence of 0.9",
            "a threshold of 0.9",
            "about 0.99",
            "confidence of 95%",
            "confidence 95%",
            "at most 5%",
            "exactly 5%",
            "a risk of 2%",
        ],
        BILLIONS,
    ],
    "docs/choosing.md": ["keeps 95% or 98% of"],
    "docs/elasticize.md": [
        "40% of an A100's",
        "2.6 GB with gradients",
        "first 38% of the steps",
        "0.3 times the error",
    ],  # estimates, a setting
    "docs/evaluation.md": [READING, "95% intervals"],
    "docs/planning.md": [BILLIONS, "to about 1%"],
    "docs/scaling_law.md": [  # test_scaling_law.py
        *["Intervals hold 95%", "alpha = 0.077, beta = 0.015", "alpha = 0.029, beta = 0.048"],
        *["a residual of 0.0040", "a residual of 0.0144", "within 0.010 of", "0.002 in alpha and 0.0005 in beta"],
        *["from 0.14, or by the bootstrap from 0.26", "1 and 13.5 visual tokens", "T = 13.5", "would give 12.1"],
        *["by 0.017 and 0.005", "0.1359 in the list and 0.1559 in the table", "by up to 0.033"],
    ],
    "docs/serving.md": [PARAMETERS, "a transformers below 5.20", "`ray[llm]` 2.60"],
    "docs/signals.md": [  # risks and intervals
        *["2% of the answers", "its 95% interval", "at 1%, 2% and 5%", "at 2%", "tokens at 5%"],
    ],
    "docs/speed.md": [
        *["1.1B decoder", "2.5 GHz", "below 3% in 8 bits and 15% in 4"],
        *["within 1.25 of the roofline", "within 1.15 of reading"],  # targets
    ],
    "docs/training.md": [PARAMETERS, "(1%)"],
    "docs/visualization.md": ["it would be 6.2%", "0.23, 0.48, 0.80, 0.98 and 0.98"],  # test_visualization.py
    "model_cards/llava-tiny/README.md": ["1.4 million parameters"],
    "model_cards/mqt-llava-7b/README.md": [READING, "MME-P 0.5"],
    "model_cards/mqt-llava-tiny/README.md": [PARAMETERS],
}
