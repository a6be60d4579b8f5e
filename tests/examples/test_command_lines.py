"""What a person meets first of a script: its help, and what it says when something is missing or broken."""

import re
import shlex
import socket
import subprocess
import sys

import pytest
from PIL import Image

from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY
from tests.builders.scripts import load_script


MOSAIC = PICTURES / "mosaic_0.png"
HEAVY = ("torch", "transformers", "mqt_llava", "gradio", "openai", "matplotlib")
# Those that a user copies. What trains has transformers' TrainingArguments for flags, which need torch.
SCRIPTS = [
    path
    for pattern in ("*.py", "serve/*.py")
    for path in sorted((REPOSITORY / "examples").glob(pattern))
    if "argparse.ArgumentParser" in path.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_help_waits_for_no_import(script):
    done = subprocess.run([sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported.intersection(HEAVY)


@pytest.fixture
def truncated(tmp_path):
    path = tmp_path / "half of it.png"
    path.write_bytes(MOSAIC.read_bytes()[:3000])
    return path


@pytest.mark.parametrize("name", ["answer_at_budgets", "explain"])
def test_a_truncated_image_is_named(name, truncated, capsys):
    module = load_script(f"examples/{name}.py")
    with pytest.raises(SystemExit):
        module.main(["--image", str(truncated), "--question", "Is there any footwear?"])
    *_, error = capsys.readouterr().err.splitlines()
    assert f"--image: {truncated} cannot be read: image file is truncated" in error


def test_a_picture_of_ones_own_leaves_the_picture_of_the_demo(tmp_path, monkeypatch):
    answer_at_budgets = load_script("examples/answer_at_budgets.py")
    monkeypatch.setattr(answer_at_budgets, "REPOSITORY", tmp_path)  # where runs/ is
    shown = tmp_path / "demo.png"  # named so that the name is taken
    shown.write_bytes(MOSAIC.read_bytes())
    arguments = ["--image", str(shown), "--question", "Is there any footwear?", "--num-visual-tokens", "1"]
    answer_at_budgets.main([*arguments, "--model", str(CHECKPOINT)])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["demo_answers.png"]
    assert Image.open(tmp_path / "runs" / "demo_answers.png").size[0] > 700
    assert shown.read_bytes() == MOSAIC.read_bytes()


def test_the_default_number_is_in_the_help(capsys):
    main = load_script("examples/folder_to_jsonl.py").main
    with pytest.raises(SystemExit):
        main(["--help"])
    assert 'a number, or "auto", the default' in " ".join(capsys.readouterr().out.split())


def test_the_examples_of_plan_budget_run(monkeypatch, capsys):
    plan_budget = load_script("examples/plan_budget.py")
    monkeypatch.chdir(REPOSITORY)
    commands = re.findall(r"^    python examples/plan_budget.py (.*)$", plan_budget.__doc__, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        plan_budget.main(shlex.split(command))
        assert "Largest m within limits: " in capsys.readouterr().out


def test_the_end_of_an_answer_has_no_row(tmp_path, monkeypatch, capsys):
    pytest.importorskip("captum")
    explain = load_script("examples/explain.py")
    from mqt_llava import visualization as visual

    assert explain.METHODS == tuple(visual.METHODS)
    rows = {}
    for name, tokens in (("draw_heatmaps", 2), ("draw_changes", 0)):
        draw = getattr(visual, name)

        def keep(*args, name=name, tokens=tokens, draw=draw, **kwargs):
            rows.setdefault(name, args[tokens])
            return draw(*args, **kwargs)

        monkeypatch.setattr(visual, name, keep)
    arguments = ["--question", "What is in the top left?", "--num-visual-tokens", "1", "16"]
    explain.main([*arguments, "--output", str(tmp_path)])
    assert rows == {"draw_heatmaps": ["sneaker"], "draw_changes": ["sneaker"]}
    assert "heatmaps: 100%" in capsys.readouterr().err  # a bar


def test_a_missing_server_is_said_in_a_line(monkeypatch, capsys):
    pytest.importorskip("openai")
    ask_server = load_script("examples/serve/ask_server.py")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SystemExit) as stopped:
        ask_server.main(["--url", url, "--image", str(MOSAIC), "--question", "Is there any footwear?"])
    assert str(stopped.value) == f"There is no server at {url}: Connection error."


def test_what_else_the_client_lacks_is_said_in_a_line(monkeypatch, capsys):
    ask_server = load_script("examples/serve/ask_server.py")
    with pytest.raises(SystemExit):
        ask_server.main(["--image", "nowhere.png", "--question", "What?"])
    assert "--image: there is no file nowhere.png" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SystemExit) as stopped:
        ask_server.main(["--image", str(MOSAIC), "--question", "What?"])
    assert str(stopped.value) == "This client needs openai: pip install openai"
