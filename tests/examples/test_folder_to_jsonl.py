"""examples/folder_to_jsonl.py: answers to one question about folders of images, killed on the way and gone on."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image, ImageChops

from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY
from tests.builders.scripts import load_script
from tests.serving import serving_cases


main = load_script("examples/folder_to_jsonl.py").main
QUESTION = "List the items in the second row."
SCRIPT = REPOSITORY / "examples" / "folder_to_jsonl.py"
# Of vLLM, with the engine in a process of its own, as users have it.
ENVIRONMENT = {**os.environ, **serving_cases.ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
ENGINE_OPTIONS = {"transformers": [], "vllm": ["--engine-options", '{"enforce_eager": true}']}  # starts sooner


def run(*arguments):
    main([str(argument) for argument in arguments])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folders(tmp_path):
    """Two folders with folders in them, one file that is no image and one that claims to be."""
    first, second = tmp_path / "first" / "deep", tmp_path / "second"
    first.mkdir(parents=True)
    second.mkdir()
    for number in range(4):
        shutil.copy(PICTURES / f"mosaic_{number}.png", (first, second)[number % 2])
    Image.open(PICTURES / "mosaic_0.png").convert("RGB").save(second / "photo.JPG")
    (second / "notes.txt").write_text("no image")
    (second / "broken.png").write_bytes(b"no image")
    return tmp_path / "first", second


@pytest.mark.parametrize("budget", ["4", "auto"])
def test_every_image_gets_a_line(folders, tmp_path, budget, capsys):
    output = tmp_path / "out" / "answers.jsonl"
    options = ["--question", QUESTION, "--num-visual-tokens", budget, "--output", output]
    run(*folders, *options, "--batch-size", 4)
    lines = {line["image"].removeprefix(str(tmp_path) + "/"): line for line in lines_of(output)}
    assert sorted(lines) == [
        "first/deep/mosaic_0.png", "first/deep/mosaic_2.png", "second/broken.png", "second/mosaic_1.png",
        "second/mosaic_3.png", "second/photo.JPG",
    ]  # fmt: skip
    assert "cannot identify image file" in lines["second/broken.png"].pop("error")
    assert "answer" not in lines.pop("second/broken.png")
    assert all(line["question"] == QUESTION and line["answer"].count(",") == 3 for line in lines.values())
    used = {line["num_visual_tokens"] for line in lines.values()}
    assert used == {4} if budget == "4" else used <= {1, 4, 16}
    assert lines["first/deep/mosaic_0.png"]["answer"] == "sneaker, coat, dress, sandal"
    # In batches or one by one, the answers are the same; nothing is asked twice.
    run(*folders, *options[:-1], tmp_path / "single.jsonl", "--batch-size", 1)
    assert lines_of(tmp_path / "single.jsonl") == lines_of(output)
    # What could not be read is tried again.
    before = output.read_bytes()
    shutil.copy(PICTURES / "mosaic_0.png", folders[1] / "broken.png")
    run(*folders, *options)
    assert "6 images, 5 of them answered already" in capsys.readouterr().out
    assert output.read_bytes().startswith(before) and len(lines_of(output)) == 7
    assert lines_of(output)[-1]["answer"] == "sneaker, coat, dress, sandal"
    run(*folders, folders[1], *options)
    assert "6 images, 6 of them answered already" in capsys.readouterr().out and len(lines_of(output)) == 7


def test_another_question_adds_lines(folders, tmp_path):
    output = tmp_path / "answers.jsonl"
    for question in (QUESTION, "Is there any footwear?"):
        run(folders[0], "--question", question, "--num-visual-tokens", 1, "--output", output)
    assert [line["question"] for line in lines_of(output)] == [QUESTION] * 2 + ["Is there any footwear?"] * 2


@pytest.mark.parametrize(
    "engine, budget, num_images, batch_size",
    [
        ("transformers", "16", 60, 1),
        pytest.param("vllm", "auto", 60, 1, marks=pytest.mark.vllm),
        pytest.param("vllm", "auto", 2000, 64, marks=[pytest.mark.vllm, pytest.mark.slow]),
    ],
)
def test_after_a_kill_it_goes_on(tmp_path, engine, budget, num_images, batch_size):
    """And ends with the lines that transformers writes when nothing kills it."""
    folder, output, whole = tmp_path / "images", tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    folder.mkdir()
    for number in range(num_images):
        picture = Image.open(PICTURES / f"mosaic_{number % 4}.png").convert("RGB")
        ImageChops.offset(picture, number // 4 % 25, number // 100).save(folder / f"{number:04}.png")
    options = [folder, "--question", QUESTION, "--num-visual-tokens", budget, "--batch-size", batch_size]
    job = [sys.executable, SCRIPT, *options, "--output", output, "--engine", engine, *ENGINE_OPTIONS[engine]]
    settings = {"args": list(map(str, job)), "env": ENVIRONMENT}
    process = subprocess.Popen(**settings, start_new_session=True)
    deadline = time.monotonic() + 240
    while not output.exists() or len(output.read_bytes().splitlines()) < num_images // 12:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)  # with vLLM's own processes, which would outlive it
    process.wait()
    there = output.read_bytes()
    assert num_images // 12 <= there.count(b"\n") < num_images
    # Should the kill have met the end of a line, part of one more stands for one that it met in the middle.
    output.write_bytes(there[: there.rfind(b"\n") + 1] + b'{"image": "' + str(folder).encode())
    subprocess.run(**settings, check=True)
    run(*options, "--output", whole)
    assert output.read_bytes() == whole.read_bytes() and len(lines_of(whole)) == num_images
    assert output.read_bytes().startswith(there[: there.rfind(b"\n") + 1])
    assert len({line["answer"] for line in lines_of(whole)}) > 10


@pytest.mark.vllm
def test_engines_give_the_same_lines(folders, tmp_path):
    """Files that cannot be read among them; and with BOS in the chat template, where the tokenizer adds none."""
    model = shutil.copytree(CHECKPOINT, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    options = [*folders, "--question", QUESTION, "--model", model]
    job = [sys.executable, SCRIPT, *options, "--engine", "vllm", *ENGINE_OPTIONS["vllm"]]
    subprocess.run(list(map(str, [*job, "--output", tmp_path / "vllm.jsonl"])), env=ENVIRONMENT, check=True)
    run(*options, "--output", tmp_path / "transformers.jsonl")
    assert (tmp_path / "vllm.jsonl").read_bytes() == (tmp_path / "transformers.jsonl").read_bytes()
    assert len(lines_of(tmp_path / "vllm.jsonl")) == 6


@pytest.mark.vllm
def test_the_job_of_the_page_runs(tmp_path):
    page = (REPOSITORY / "docs" / "serving.md").read_text()
    (command,) = re.findall("^    python (examples/folder_to_jsonl.py examples/images .*)$", page, re.MULTILINE)
    *job, output, engine, name = shlex.split(command)
    assert (output, engine, name) == ("runs/answers.jsonl", "--engine", "vllm")
    command = [sys.executable, *job, str(tmp_path / "answers.jsonl"), engine, name]
    subprocess.run(command, env=ENVIRONMENT, cwd=REPOSITORY, check=True)
    assert [line["answer"].count(",") for line in lines_of(tmp_path / "answers.jsonl")] == [15] * 4


def test_vllm_has_to_be_there(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run(folders[0], "--question", QUESTION, "--output", tmp_path / "a.jsonl", "--engine", "vllm")
    assert '--engine vllm needs vLLM: pip install "mqt_llava[serve]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"--num-visual-tokens": 17}, "--num-visual-tokens is 17, but this model has 1 to 16"),
        ({"--num-visual-tokens": "many"}, "'many' is no whole number"),
        ({"--num-visual-tokens": 2.5}, "'2.5' is no whole number"),
        ({"--batch-size": 0}, "--batch-size is 0"),
        ({"--engine": "llama.cpp"}, "invalid choice: 'llama.cpp'"),
        ({"--engine-options": "[1]"}, "'[1]' is no JSON object"),
        ({"--engine-options": "dtype"}, "'dtype' is no JSON object"),
        ({"--engine-options": '{"dtyp": 1}'}, "cannot be loaded: "),
        ({"--max-new-tokens": 0}, "--max-new-tokens is 0"),
        ({"--question": " "}, "--question is empty"),
        ({"--model": "/nowhere/model"}, "--model /nowhere/model cannot be loaded"),
        ({"--output": REPOSITORY}, "--output: "),
        ({"--output": REPOSITORY / "README.md"}, "was not written by this script"),
    ],
)
def test_bad_arguments_are_named(folders, tmp_path, capsys, changes, message):
    options = {"--question": QUESTION, "--output": tmp_path / "answers.jsonl", **changes}
    readme = (REPOSITORY / "README.md").read_bytes()
    with pytest.raises(SystemExit):
        run(folders[0], *[part for pair in options.items() for part in pair])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "answers.jsonl").exists() and (REPOSITORY / "README.md").read_bytes() == readme


@pytest.mark.parametrize("content", ['{"conversations": [1, 2, 3]}', '[{"image": 1}]', '{"image": "x"}\n', "notes"])
def test_other_files_are_left_as_they_are(folders, tmp_path, capsys, content):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(SystemExit):
        run(folders[0], "--question", QUESTION, "--output", tmp_path / "mine.json")
    assert "was not written by this script" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == content


def test_names_need_not_be_text(folders, tmp_path):
    path = os.fsencode(folders[0]) + b"/bad\xff.png"
    with open(path, "wb") as file:
        file.write((PICTURES / "mosaic_0.png").read_bytes())
    for _ in range(2):
        run(folders[0], "--question", QUESTION, "--num-visual-tokens", 1, "--output", tmp_path / "answers.jsonl")
    assert os.fsdecode(path) in [line["image"] for line in lines_of(tmp_path / "answers.jsonl")]
    assert len(lines_of(tmp_path / "answers.jsonl")) == 3


def test_quecc_has_no_number_to_choose(folders, tmp_path, converted_quecc, capsys):
    with pytest.raises(SystemExit):
        run(folders[0], "--question", QUESTION, "--output", tmp_path / "a.jsonl", "--model", converted_quecc)
    assert "--model is a quecc_llava, whose number" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "nowhere", "--question", QUESTION, "--output", tmp_path / "answers.jsonl")
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
