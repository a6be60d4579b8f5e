"""
Runs transformers' own suites over LLaVA and over our classes, and prints the counts of both:

    python -m tests.transformers_suites.run_suites FOLDER [arguments of pytest]

FOLDER is a checkout of transformers at the version that is installed. Fails when a test fails that passes for LLaVA.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import transformers

from tests.transformers_suites import tiny_checkpoints
from tests.transformers_suites.comparison import REFERENCE, differences, table


HERE = Path(__file__).resolve().parent
PICTURE = Path("tests", "fixtures", "tests_samples", "COCO", "000000039769.png")


def check_suites(folder: Path) -> None:
    """
    Raises:
        ValueError: There are no suites in this folder, or those of another version.
    """
    source = folder / "src" / "transformers" / "__init__.py"
    names = ("tests/test_modeling_common.py", "tests/models/llava", "tests/generation/test_utils.py", "utils", PICTURE)
    if missing := [str(path) for path in (source, *(folder / name for name in names)) if not path.exists()]:
        raise ValueError(f"SUITES is {folder}, but must be a checkout of transformers: it lacks {', '.join(missing)}.")
    version = re.search(r'^__version__ = "(.+)"', source.read_text(encoding="utf-8"), re.MULTILINE)[1]
    if version != transformers.__version__:
        raise ValueError(
            f"SUITES is {folder}, a checkout of transformers {version}, but must be one of the version installed, "
            f"{transformers.__version__}."
        )


def run_suites(folder: Path, pytest_arguments: list[str]) -> tuple[list[dict], bool]:
    """The outcome of each test, and whether every file of them ran to its end."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints, outcomes = Path(scratch, "checkpoints"), Path(scratch, "outcomes.jsonl")
        tiny_checkpoints.save(checkpoints)
        # The tests run where they find the checkout, and beside it a picture that transformers has on the Hub. Its
        # package is called `tests` too, so ours that the suites need are put among its own.
        for name in ("src", "utils"):
            Path(scratch, name).symlink_to(folder / name)
        Path(scratch, "tests").mkdir()
        for path in (*(folder / "tests").iterdir(), HERE, HERE.parent / "builders"):
            Path(scratch, "tests", path.name).symlink_to(path)
        Path(scratch, "coco_sample.png").symlink_to(folder / PICTURE)
        outcomes.touch()
        environment = {
            **os.environ,
            "TRANSFORMERS_TINY_MODEL_PATH": str(checkpoints),
            "OUTCOMES": str(outcomes),
            "HF_HUB_OFFLINE": "1",  # nothing that is counted needs the Hub
        }
        statuses = set()
        for file in sorted(HERE.glob("suite_*.py")):
            command = [sys.executable, "-m", "pytest", f"tests/{HERE.name}/{file.name}", *pytest_arguments]
            statuses.add(subprocess.run(command, cwd=scratch, env=environment, check=False).returncode)
        lines = outcomes.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], statuses <= {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    options, pytest_arguments = parser.parse_known_args(arguments)
    if options.folder is None:
        print("Skipped, for want of the suites: SUITES=FOLDER names a checkout of transformers (CONTRIBUTING.md).")
        return 0
    folder = options.folder.resolve()
    try:
        check_suites(folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1

    outcomes, is_complete = run_suites(folder, pytest_arguments)
    print(f"\n{table(outcomes)}\n")
    for outcome in ("skipped", "failed"):
        tests = differences(outcomes, outcome)
        print(f"{len(tests)} {outcome} of those that pass for {REFERENCE}{':' if tests else '.'}")
        print("".join(f"  {test}\n" for test in tests), end="")
    if not is_complete:
        print("Not every file ran to its end, or had tests at all: see above.")
    return 1 if tests or not is_complete else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
