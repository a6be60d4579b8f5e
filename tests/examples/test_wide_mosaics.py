"""The wide testbed and its curriculum, with noise for photos."""

import random
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mqt_llava.files.json_lines import append_json_lines, read_json_lines
from tests.builders.paths import CHECKPOINT, REPOSITORY
from tests.builders.scripts import load_script


FOLDER = REPOSITORY / "examples" / "fashion_mosaics"


@pytest.fixture(scope="module")
def wide():
    return load_script("examples/fashion_mosaics/wide_mosaics.py")


@pytest.fixture(scope="module")
def curriculum():
    return load_script("examples/fashion_mosaics/curriculum.py")


@pytest.fixture(scope="module")
def training():
    return load_script("examples/fashion_mosaics/train_wide.py")


@pytest.fixture(scope="module")
def items(wide, dataset):
    return wide.load_items("train", dataset)


@pytest.fixture
def mosaic(wide, items):
    return wide.draw_mosaic(random.Random(0), items)


def test_photos_are_halved(wide):
    photos = np.zeros((1, 28, 28), np.uint8)
    photos[0, :2, 2:4] = [[10, 20], [30, 41]]
    halved = wide.halve(photos)
    assert halved.shape == (1, 14, 14) and halved[0, 0, 1] == 25 and halved.sum() == 25


def test_a_mosaic_shows_what_it_names(mosaic, items):
    pixels = np.asarray(mosaic.image)
    assert pixels.shape == (112, 112, 3) and len(mosaic.names) == 64
    for cell, name in enumerate(mosaic.names):
        top, left = 14 * (cell // 8), 14 * (cell % 8)
        shown = pixels[top : top + 14, left : left + 14, 0]
        assert (shown == items[name]).all((1, 2)).any()


def test_answers_are_what_stands_there(wide, mosaic):
    rng, names = random.Random(0), np.array(mosaic.names).reshape(8, 8)
    asked = {kind: ask(rng, mosaic, 5) for kind, ask in wide.QUESTION_KINDS.items()}
    for question, answer in asked["position"]:
        letter, number = re.fullmatch(r"What is in ([A-H])([1-8])\?", question).groups()
        assert answer == names["ABCDEFGH".index(letter), int(number) - 1]
    for question, answer in asked["row"]:
        (letter,) = re.fullmatch(r"List the items in row ([A-H])\.", question).groups()
        assert answer == ", ".join(names["ABCDEFGH".index(letter)])
    for question, answer in asked["column"]:
        (number,) = re.fullmatch(r"List the items in column ([1-8])\.", question).groups()
        assert answer == ", ".join(names[:, int(number) - 1])
    assert asked["list"][0] == ("List the items.", ", ".join(mosaic.names))
    assert {answer for _, answer in asked["presence"]} == {"yes", "no"}


def test_what_there_is_most_of_is_clear(wide, items):
    rng = random.Random(0)
    for _ in range(50):
        mosaic = wide.draw_mosaic(rng, items)
        most, second = sorted(mosaic.groups().values())[:-3:-1]
        assert bool(wide.QUESTION_KINDS["most"](rng, mosaic, 1)) == (most >= second + 4)


@pytest.mark.parametrize("region", [2, 5, 8])
def test_each_place_of_the_region_is_asked_once(wide, mosaic, region):
    places = {}
    for place, name in wide.ask_cells(random.Random(0), mosaic, region):
        letter, number = place
        places["ABCDEFGH".index(letter), int(number) - 1] = name
    assert places == {(row, col): mosaic.names[8 * row + col] for row in range(region) for col in range(region)}
    assert len(wide.ask_cells(random.Random(0), mosaic, region)) == region**2


@pytest.mark.parametrize(
    "before, scores, after",
    [
        (("cells", 2), {"cells": 0.9, "worst_line": 0.69}, ("cells", 2)),
        (("cells", 2), {"cells": 0.8, "worst_line": 0.7}, ("cells", 3)),
        (("cells", 7), {"cells": 0.99, "worst_line": 0.9}, ("cells", 8)),
        (("cells", 8), {"cells": 0.84, "worst_line": 0.8}, ("cells", 8)),
        (("cells", 8), {"cells": 0.85, "worst_line": 0.8}, ("places", 8)),
        (("places", 8), {"cells": 0.9, "position": 0.84}, ("places", 8)),
        (("places", 8), {"cells": 0.5, "position": 0.85}, ("everything", 8)),
        (("everything", 8), {"cells": 0.1, "position": 0.1}, ("everything", 8)),
    ],
)
def test_the_region_grows_by_what_is_right(curriculum, before, scores, after):
    state = curriculum.Curriculum(*before)
    state.advance(scores)
    assert (state.stage, state.region) == after


def test_only_what_needs_looking_counts(curriculum):
    labels = torch.tensor([[-100, -100, 5, 1, 6, 2]])  # 1 and 2 are a comma and an end
    said = torch.tensor([[9, 5, 1, 9, 2, 9]])  # each one place earlier: 5 is right, 6 is not

    def model(**batch):
        return SimpleNamespace(logits=torch.nn.functional.one_hot(said, 10))

    model.device = torch.device("cpu")
    assert curriculum.judge(model, {"labels": labels}, torch.tensor([1, 2])).tolist() == [1, 0]


def test_the_worst_row_or_column_is_found(curriculum):
    def record(*places):
        return {"messages": [{"content": [{"text": text}]} for place in places for text in (place, "bag")]}

    records = [record("A1", "B1? ASSISTANT:", "A2", "B2"), record("B2", "A2", "B1", "A1")]
    is_right = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 0])
    assert curriculum.worst_line(is_right, records) == 0.25  # of row A


def test_the_curve_remembers_the_region_of_a_checkpoint(curriculum, tmp_path):
    path, state = tmp_path / "curve.jsonl", curriculum.Curriculum()
    rows = [{"step": 10 * n, "minutes": n, "stage": "cells", "region": n + 1} for n in (1, 2, 3)]
    append_json_lines(path, rows)
    curve = curriculum.CurveCallback(state, path, None, [], "", 10)
    curve.resume(25)
    assert (state.stage, state.region, curve.minutes) == ("cells", 3, 2)
    assert read_json_lines(path)[0] == rows[:2]
    curve.resume(0)
    assert read_json_lines(path)[0] == []


def flags(dataset, folder) -> list[str]:
    options = {
        "output_dir": folder, "data_folder": dataset, "max_steps": 5, "position_steps": 3, "save_steps": 3,
        "per_device_train_batch_size": 4, "warmup_steps": 1, "curve_steps": 2, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def test_bare_conversations_are_places_and_items(training, dataset, tmp_path):
    (args,) = training.HfArgumentParser(training.WideTrainingArguments).parse_args_into_dataclasses(
        flags(dataset, tmp_path)
    )
    conversations = training.WideConversations(args, training.Curriculum("everything"))
    processor = training.build_processor(conversations, 64, **training.PIXEL_SCALE)
    conversations.curriculum = training.Curriculum("cells", 3)
    rows = [conversations[index] for index in range(2)]
    batch = training.TwoTemplates(processor, seed=0)(rows)
    for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"]):
        texts = [message["content"][-1]["text"] for message in row["messages"]]
        assert len(texts) == 18 and {text[2:] for text in texts[::2]} == {"", "? ASSISTANT:"}
        decode = processor.tokenizer.decode
        assert decode(ids, skip_special_tokens=True).split() == " ".join(texts).split()
        assert decode(labels[labels >= 0]).split() == " ".join(texts[1::2]).split()

    conversations.curriculum = training.Curriculum("everything")
    kinds = {conversations[index]["bare"] for index in range(100)}
    assert kinds == {True, False}  # cells go on
    assert all(len({conversations[4 * number + index]["bare"] for index in range(4)}) == 1 for number in range(25))


def test_places_are_as_loud_as_patches_and_have_words(training, dataset, tmp_path):
    (args,) = training.HfArgumentParser(training.WideTrainingArguments).parse_args_into_dataclasses(
        flags(dataset, tmp_path)
    )
    conversations = training.WideConversations(args, training.Curriculum("everything"))
    processor = training.build_processor(conversations, 64, **training.PIXEL_SCALE)
    model = training.build_model(processor.tokenizer, args)
    batch = training.TwoTemplates(processor, seed=0)([conversations[0]])
    embeddings = model.model.vision_tower.embeddings
    places = embeddings.position_embedding.weight[1:].norm(dim=1).mean()
    patches = embeddings.patch_embedding(batch["pixel_values"]).flatten(2).norm(dim=1).mean()
    assert 0.4 < places / patches < 2.5
    grid = embeddings.position_embedding.weight[1:].unflatten(0, (8, 8))
    torch.testing.assert_close(grid[2, 3] - grid[2, 0], grid[7, 3] - grid[7, 0])
    word = model.get_input_embeddings().weight[processor.tokenizer.encode("C4", add_special_tokens=False)]
    torch.testing.assert_close(torch.cosine_similarity(word, grid[2, 3]), torch.ones(1))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide") / "llava"
    run("train_wide.py", *flags(dataset, folder))
    return folder


def run(script, *argv):
    """By itself, since a checkpoint names the classes of the script that wrote it."""
    subprocess.run(list(map(str, [sys.executable, FOLDER / script, *argv])), check=True, capture_output=True)


def read_curve(folder) -> list[dict]:
    return [{**row, "minutes": 0} for row in read_json_lines(folder / "curve.jsonl")[0]]


@pytest.mark.costly
def test_training_goes_on_where_it_was_stopped(trained, dataset, tmp_path):
    stopped = shutil.copytree(trained, tmp_path / "stopped")
    (stopped / "model.safetensors").unlink()
    shutil.rmtree(stopped / "checkpoint-5")
    run("train_wide.py", *flags(dataset, stopped))
    curve = read_curve(trained)
    assert [row["step"] for row in curve] == [2, 4] and 0 <= curve[0]["cells"] <= 1
    assert read_curve(stopped) == curve
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained, stopped))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.costly
def test_the_llava_becomes_elastic_and_is_judged(trained, dataset, tmp_path):
    elastic = tmp_path / "elastic"
    run(
        "train_elastic.py", "--testbed", "wide_mosaics", "--llava", trained, "--max_visual_tokens", 64,
        "--budget", "LogBudget(64)", "--fit_steps", 2, "--fit_order", "coarse_to_fine", "--distillation", "llava",
        "--data_folder", dataset, "--max_steps", 2, "--per_device_train_batch_size", 2, "--dataloader_num_workers", 0,
        "--use_cpu", "true", "--output_dir", elastic,
    )  # fmt: skip
    argv = ["--model", elastic, "--testbed", "wide_mosaics", "--num-visual-tokens", 1, 64, "--kinds", "position"]
    results = load_script("examples/fashion_mosaics/evaluate.py").main(
        list(map(str, [*argv, "--mosaics", 2, "--data-folder", dataset]))
    )
    assert set(results["position"]["accuracy"]) == {1, 64}


def test_places_of_the_other_testbed_are_not_asked_about(wide, mosaic):
    with pytest.raises(ValueError, match="`mosaic` has 8 rows, but these places are those of 4"):
        wide.mosaics.ask_positions(random.Random(1), mosaic, 1)


def test_evaluation_asks_the_questions_of_its_testbed(wide, dataset, tmp_path, monkeypatch):
    evaluate, asked = load_script("examples/fashion_mosaics/evaluate.py"), []

    def answer(model, processor, mosaics, kind, questions, budgets):
        asked.extend(question for _, (question, _) in questions)
        return {budget: [1.0] for budget in budgets}

    monkeypatch.setattr(evaluate, "accuracies", answer)
    argv = ["--model", CHECKPOINT, "--testbed", "wide_mosaics", "--kinds", "position", "row", "--mosaics", 2]
    evaluate.main(list(map(str, [*argv, "--data-folder", dataset])))
    places = [f"What is in {letter}{column}?" for letter in wide.LETTERS for column in range(1, 9)]
    rows = [f"List the items in row {letter}." for letter in wide.LETTERS]
    assert len(asked) == 4 and set(asked) <= {*places, *rows}
