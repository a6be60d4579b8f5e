"""The scripts in examples/, with the embedded checkpoint and without the dataset."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY
from tests.builders.scripts import load_script


def test_demo_prints_answers_and_saves_a_picture(tmp_path):
    command = [sys.executable, REPOSITORY / "examples" / "answer_at_budgets.py", "--output", tmp_path / "demo.png"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for budget in (1, 2, 4, 8, 16):
        assert f"{budget} visual tokens, prompt of" in output
    assert Image.open(tmp_path / "demo.png").size[0] > 700


def test_quickstart_is_the_first_snippet_of_the_readme():
    path = REPOSITORY / "examples" / "quickstart.py"
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)[:1]
    assert path.read_text().endswith(snippet)
    command = [sys.executable, path]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()
    assert output[-1].split(maxsplit=1) == ["16", "sneaker, coat, dress, sandal"]


def test_every_script_is_on_the_page_of_scripts():
    """Those that a user copies; what made the embedded checkpoint and its figures is described elsewhere."""
    patterns = ("*.py", "train/*.py", "serve/*.py")
    scripts = [path for pattern in patterns for path in sorted((REPOSITORY / "examples").glob(pattern))]
    page = (REPOSITORY / "docs" / "examples.md").read_text()
    modules = {"folder_engines.py", "pictures.py"}
    names = [str(path.relative_to(REPOSITORY)) for path in scripts if path.name not in modules]
    names = [name for name in names if "/demo_" not in name]
    assert [name for name in names if f"(../{name})" not in page] == []


def test_embedded_checkpoint_answers_about_held_out_photos():
    """With all tokens nearly everything is right, with one token still what is coarse."""
    pipe = pipeline("image-text-to-text", model=str(CHECKPOINT))
    right = {1: [], 16: []}
    for name, pairs in json.loads((PICTURES / "questions.json").read_text()).items():
        for question, truth in pairs:
            content = [{"type": "image", "path": str(PICTURES / name)}, {"type": "text", "text": question}]
            for budget, answers in right.items():
                (output,) = pipe(
                    [{"role": "user", "content": content}],
                    generate_kwargs={"num_visual_tokens": budget, "do_sample": False, "max_new_tokens": 80},
                    return_full_text=False,
                )
                answers.append((truth in ("yes", "no"), output["generated_text"].strip() == truth))
    assert sum(correct for _, correct in right[16]) >= 0.7 * len(right[16])
    assert all(correct for is_coarse, correct in right[1] if is_coarse)


def test_embedded_checkpoint_is_small_and_complete():
    files = {path.name for path in CHECKPOINT.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"} <= files
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 15e6
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    assert model.config.max_visual_tokens == processor.max_visual_tokens == 16


def test_evaluation_counts_right_answers(dataset, tmp_path):
    evaluate = load_script("examples/fashion_mosaics/evaluate.py")
    assert evaluate.score("position", "bag", "bag") == 1 and evaluate.score("position", "bag, bag", "bag") == 0
    assert evaluate.score("row", "bag, dress, coat", "bag, coat, coat, bag") == 0.5
    arguments = ["--data-folder", dataset, "--mosaics", 3, "--num-visual-tokens", 1, 16]
    arguments += ["--output", tmp_path / "figures.json"]
    results = evaluate.main(list(map(str, arguments)))
    assert {"position", "row", "column", "list", "presence"} <= set(results)
    assert results["list"]["questions"] == 3
    assert json.loads((tmp_path / "figures.json").read_text())["results"]["list"]["accuracy"].keys() == {"1", "16"}


def test_calibration_is_judged_on_the_other_half(dataset, tmp_path):
    main = load_script("examples/fashion_mosaics/adaptive.py").main
    arguments = ["--data-folder", dataset, "--calibration-questions", 4, "--test-questions", 8]
    arguments += ["--output", tmp_path / "figures.json"]
    results = main(list(map(str, arguments)))
    assert (results["calibration"]["questions"], results["judged"]["questions"]) == (4, 8)
    # The budget that was found on the one half is the one that answered about the other.
    assert results["judged"]["fixed"][-1] == [16, round(results["accuracy_at_max"], 4)]
    assert [m for m, _ in results["judged"]["fixed"]] == [1, 2, 4, 8, 16]
    assert sum(results["stops"].values()) == 8
    assert json.loads((tmp_path / "figures.json").read_text()) == results


def test_promises_are_judged_on_what_they_were_not_calibrated_on(dataset, tmp_path):
    main = load_script("examples/fashion_mosaics/promise.py").main
    arguments = ["--data-folder", dataset, "--pool", 40, "--prompts", 10, "--risks", 0.3, 0.6, "--draws", 3]
    arguments += ["--log", tmp_path / "pool.jsonl", "--output", tmp_path / "new" / "figures.json"]
    results = main(list(map(str, [*arguments, "--calibration", tmp_path / "calibration.json"])))
    assert results["pool"] == 40 and results["agree_at_levels"][-1] == 1
    strict, loose = results["simulations"]
    assert strict["mean_risk"] <= loose["mean_risk"] and strict["mean_visual_tokens"] >= loose["mean_visual_tokens"]
    assert strict["best_visual_tokens"] >= loose["best_visual_tokens"] >= 1
    assert main(list(map(str, arguments))) == results == json.loads((tmp_path / "new" / "figures.json").read_text())
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["num_prompts"] == 10 and found["budget"]["promise"]["risk"] == 0.6


def test_training_goes_on_where_it_was_stopped(dataset, tmp_path):
    def train(folder, steps, **changes):
        options = {
            "output_dir": tmp_path / folder, "data_folder": dataset, "max_steps": steps, "list_steps": 1,
            "position_steps": 2, "save_steps": 3, "per_device_train_batch_size": 4, "warmup_steps": 1,
            "dataloader_num_workers": 0, "use_cpu": True, "disable_tqdm": True, **changes,
        }  # fmt: skip
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        # By itself, since a checkpoint names the classes of the script that wrote it.
        script = REPOSITORY / "examples" / "fashion_mosaics" / "train.py"
        subprocess.run([sys.executable, script, *flags], check=True, capture_output=True)
        return load_file(tmp_path / folder / "model.safetensors")

    whole = train("whole", 5)
    train("stopped", 5)
    (tmp_path / "stopped" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-5")
    resumed = train("stopped", 5)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_models_are_compared_and_what_is_finished_is_not_repeated(dataset, tmp_path):
    command = [sys.executable, REPOSITORY / "examples" / "fashion_mosaics" / "compare.py", "--output", tmp_path]
    command += ["--data-folder", dataset, "--seeds", 0, "--mosaics", 2, "--variants", "mqt", "qt_4", "--train-flags"]
    command += ["--max_steps", 4, "--list_steps", 1, "--position_steps", 2, "--per_device_train_batch_size", 4]
    first_times = {}
    for _ in range(2):
        subprocess.run(list(map(str, command)), check=True)
        runs = {run["variant"]: run for run in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
        assert set(runs["mqt"]["evaluation"]["list"]["accuracy"]) == {"1", "2", "4", "8", "16"}
        assert set(runs["qt_4"]["evaluation"]["list"]["accuracy"]) == {"4"}
        assert runs["mqt"]["steps"] == 4 and 2 < runs["mqt"]["cost_of_nesting"] < 3
        times = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/evaluation.json")}
        assert times.keys() == {"mqt-0", "qt_4-0"} and times == first_times.setdefault("times", times)


@pytest.mark.slow
def test_compressors_are_compared(dataset, tmp_path):
    command = [sys.executable, REPOSITORY / "examples" / "fashion_mosaics" / "compare_quecc.py", "--output", tmp_path]
    command += ["--data-folder", dataset, "--seeds", 0, "--mosaics", 2, "--variants", "mqt", "quecc_4", "--steps", 2]
    subprocess.run(list(map(str, command)), check=True)
    runs = {run["variant"]: run for run in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert set(runs["mqt"]["evaluation"]["position"]["accuracy"]) == {"1", "4", "16"}
    assert set(runs["quecc_4"]["evaluation"]["presence"]["accuracy"]) == {"4"}
    assert runs["quecc_4"]["steps"] == 2


@pytest.mark.parametrize(
    "name, page, num_tables", [("compare_quecc_report", "quecc.md", 1), ("compare_report", "training.md", 2)]
)
def test_comparison_is_reported(name, page, num_tables, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    load_script(f"examples/fashion_mosaics/{name}.py").main(["--figure", str(tmp_path / "figure.png")])
    assert Image.open(tmp_path / "figure.png").size[0] > 700
    shown = (REPOSITORY / "docs" / page).read_text()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == num_tables and all(table in shown for table in tables)


def test_the_page_has_the_ranking_of_elastic_trainings(capsys):
    pytest.importorskip("matplotlib")
    report = load_script("examples/fashion_mosaics/compare_elastic_report.py")
    page = (REPOSITORY / "docs" / "elasticize.md").read_text()
    report.main([])
    assert capsys.readouterr().out.strip() in page
    report.main(["--results", str(report.RESULTS / "elastic.jsonl"), "--budgets", "1", "4", "8", "16"])
    means, *_ = capsys.readouterr().out.strip().split("\n\n")
    assert means in page


def run_when_pasted(page: str, capsys) -> tuple[list[str], list[str]]:
    """The Python blocks of a page, and the lines that they print one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(block, namespace)
    return blocks, [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_the_elastic_study_is_reported(tmp_path, capsys):
    """Differences are of the same seed, in whatever order the runs ended."""
    pytest.importorskip("matplotlib")
    report = load_script("examples/fashion_mosaics/compare_elastic_report.py")
    runs = {
        "llava": ([64], {1: 0.9, 2: 0.8}),
        "fit": ([1, 2, 4, 8, 16], {2: 0.79, 1: 0.89}),
        "kl": ([1, 2, 4, 8, 16], {1: 0.95}),
        "qt_4": ([4], {1: 0.5}),
    }
    lines = [
        {"variant": name, "seed": seed, "evaluation": {kind: {"accuracy": dict.fromkeys(numbers, accuracy)}}}
        for name, (numbers, seeds) in runs.items()
        for seed, accuracy in seeds.items()
        for kind in report.QUESTIONS
    ]
    (tmp_path / "elastic.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report.main(["--results", str(tmp_path / "elastic.jsonl"), "--figure", str(tmp_path / "figure.png")])
    means, differences = capsys.readouterr().out.strip().split("\n\n")
    assert [line.split("`")[1] for line in means.splitlines()[2:]] == ["llava", "kl", "fit", "qt_4"]
    assert "| `fit` | 84.0 / 84.0 / 84.0 |" in means
    assert "| `fit` - LLaVA, at m = 16 | -1.0 ± 0.0 |" in differences
    assert "kl" not in differences and "qt" not in differences  # one seed has no interval
    assert Image.open(tmp_path / "figure.png").size[0] == 1350


def test_readme_snippets_run_when_pasted(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    (_, adaptive), lines = run_when_pasted("README.md", capsys)
    assert [line.split()[0] for line in lines[:3]] == ["1", "4", "16"]
    assert lines[3:] == re.findall(r"^# (.+)$", adaptive, re.MULTILINE)
    assert [line.split()[0] for line in lines[3:]] == ["1", "4", "16"]


def test_usage_snippets_run_when_pasted(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    _, lines = run_when_pasted("docs/usage.md", capsys)
    assert lines[2].split(maxsplit=1) == ["4", lines[0]]  # the pipeline's answer


def test_heatmaps_are_weighed(dataset, tmp_path):
    pytest.importorskip("captum")
    main = load_script("examples/fashion_mosaics/heatmap_mass.py").main
    results = main(["--mosaics", "2", "--data-folder", str(dataset), "--output", str(tmp_path / "figures.json")])
    # The library's Grad-CAM is that of the script, which goes by the layers of the vision tower.
    assert results["grad_cam"]["all"] == pytest.approx(results["Grad-CAM, what is compressed"]["all"], rel=1e-3)
    assert json.loads((tmp_path / "figures.json").read_text())["results"].keys() == results.keys()


def test_known_pictures_are_found_and_others_are_marked(dataset, tmp_path):
    main, model = load_script("examples/fashion_mosaics/known_images.py").main, tmp_path / "model"
    shutil.copytree(CHECKPOINT, model)
    photographs = tmp_path / "packages" / "scikit-image"
    photographs.mkdir(parents=True)
    for name in ("astronaut", "logo"):  # one of them counts as a photograph
        Image.effect_noise((90, 60), 80).save(photographs / f"{name}.png")
    arguments = ["--model", model, "--data-folder", dataset, "--mosaics", 20, "--training-mosaics", 20]
    arguments += ["--packages", tmp_path / "packages", "--output", tmp_path / "figures.json"]
    figures = main(list(map(str, arguments)))
    assert json.loads((model / "known_images.json").read_text())["threshold"] == figures["threshold"]
    for name in ("photographs in scikit-image", "other pictures in scikit-image"):
        assert (figures["results"][name]["pictures"], figures["results"][name]["marked"]) == (1, 1)
    assert figures["results"]["held-out mosaics"]["pictures"] == 20
    assert json.loads((tmp_path / "figures.json").read_text()) == figures


def test_missing_dataset_says_what_to_install(tmp_path):
    load_items = load_script("examples/fashion_mosaics/mosaics.py").load_items
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load_items("train", str(tmp_path))
