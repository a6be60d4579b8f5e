"""Every code block of README and docs is run, here or by the test that its comment names, or says why not."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.builders.paths import PICTURES, REPOSITORY
from tests.docs.code_blocks import PAGES, find_blocks


MOSAIC = PICTURES / "mosaic_0.png"
BLOCKS = {page: find_blocks(page) for page in PAGES}


TEXT = """Text
    no code

    python a.py

    b

Text

<!-- not run: a formula -->

    x
<!-- run by y -->
```python
import a

    b
```
```python
c
```
"""


def test_blocks_are_found():
    found = [(block.line, block.language, block.lines, block.comment) for block in find_blocks("", TEXT)]
    assert found == [
        (4, "shell", ["python a.py", "", "b", ""], None),
        (12, "shell", ["x"], "not run: a formula"),
        (15, "python", ["import a", "", "    b"], "run by y"),
        (20, "python", ["c"], None),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_comments_name_a_test_or_a_reason(page):
    sessions = set(re.findall(r"^def (\w+)\(session\)", (REPOSITORY / "noxfile.py").read_text(), re.MULTILINE))
    for block in BLOCKS[page]:
        if block.comment is None:
            continue
        assert set(re.findall(r"nox -s ([\w-]+)", block.comment)) <= sessions, block
        if block.comment.startswith("run by"):
            path, name = re.match(r"run by (tests/[\w/]+\.py)::(\w+)(?:, nox -s \w+)?$", block.comment).groups()
            assert f"\ndef {name}(" in (REPOSITORY / path).read_text(), block
        else:
            assert re.match("not run: .{8,}", block.comment), block


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the repository's files at hand, of which nothing is written, and where `pip` does nothing."""
    for path in REPOSITORY.iterdir():
        if path.name not in ("model_cards", "runs"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(REPOSITORY / "model_cards", tmp_path / "model_cards")
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, line in {"python": f'exec {sys.executable} "$@"', "pip": "exit 0"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def at_hand(folder, request):
    """What a page supposes besides: files of its reader."""
    page = request.getfixturevalue("page")
    if page == "docs/quecc.md":
        (folder / "quecc-llava").symlink_to(request.getfixturevalue("converted_quecc"))
        shutil.copy(MOSAIC, folder / "photo.png")
    if page == "docs/training.md":
        turns = [{"from": "human", "value": "<image>\nList the items."}, {"from": "gpt", "value": "sneaker, bag"}]
        records = [{"id": str(index), "image": str(MOSAIC), "conversations": turns} for index in range(8)]
        (folder / "my.json").write_text(json.dumps(records))


@pytest.mark.parametrize("page", [page for page in PAGES if not all(block.comment for block in BLOCKS[page])])
def test_blocks_without_a_comment_run(page, at_hand):
    """In the order of the page, Python in one namespace."""
    namespace = {}
    for block in BLOCKS[page]:
        if block.comment:
            continue
        if block.language == "python":
            lines = "\n" * (block.line - 1) + "\n".join(block.lines)
            exec(compile(lines, str(REPOSITORY / page), "exec"), namespace)
        else:
            script = ["bash", "-euo", "pipefail", "-c", "\n".join(block.lines)]
            done = subprocess.run(script, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, f"{block}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_loads_a_model_imports_the_package(page):
    """A reader may paste this one alone. The folder's own code does as well."""
    for block in BLOCKS[page]:
        code = "\n".join(block.lines)
        if re.search(r"\bAuto\w+\.from_pretrained\(|\bpipeline\(", code):
            assert re.search(r"^(import|from) mqt_llava\b|trust_remote_code", code, re.MULTILINE), block


def test_extras_exist_and_are_quoted():
    """Unquoted, zsh takes the brackets for a pattern."""
    setup = ast.parse((REPOSITORY / "setup.py").read_text())
    (extras,) = [
        ast.literal_eval(node.value)
        for node in ast.walk(setup)
        if isinstance(node, ast.keyword) and node.arg == "extras_require"
    ]
    paths = [REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / page for page in PAGES)]
    for folder in ("src", "examples", "conversion", "benchmarks", "model_cards"):
        paths += [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".md")]
    count = 0
    for path in paths:
        text = path.read_text()
        for match in re.finditer(r"""(["'`\s](?=\.)|.)(?<=[^.\w)\]])(?:\.|mqt_llava)\[([a-z,]+)\]""", text):
            count += 1
            assert match[1] == '"' and set(match[2].split(",")) <= extras.keys(), f"{path}: {match[0]}"
    assert count > 15
