"""
Everything that a release takes but the upload, whose command it prints (RELEASE.md has the steps around it):

    python release/build.py

Builds sdist and wheel, checks and opens them, installs the wheel into an empty environment with its dependencies, and
runs the README's first snippet and a conversion's `--help` there. Needs a package index, and minutes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


REPOSITORY = Path(__file__).parents[1]
TOOLS = ("build==1.6.1", "twine==7.0.0")

# What a wheel must bring besides the package's modules, and what nobody who installs one has a use for.
WANTED = (
    "mqt_llava/py.typed",
    "mqt_llava/mqt-llava-tiny/model.safetensors",
    "mqt_llava/mqt-llava-tiny/mosaic_0.png",
    "mqt_llava/evaluation/published.json",
    "mqt_llava/evaluation/tasks/fashion_mosaics/mosaics.parquet",
)
UNWANTED = re.compile(
    r"(^|/)(tests?|__pycache__|\.git[^/]*|\.venv[^/]*|[^/]*_cache|runs)/|\.pyc$|mqt-llava-tiny/.*\.py$"
)

# Run in the empty environment, from a folder of its own, so that nothing is imported from the repository.
PROBE = """
import importlib.metadata, pathlib, sys
import mqt_llava
assert pathlib.Path(mqt_llava.__file__).is_relative_to(sys.prefix), mqt_llava.__file__
assert (mqt_llava.EMBEDDED_CHECKPOINT / "model.safetensors").is_file()
found = {(point.group, point.name) for point in importlib.metadata.distribution("mqt_llava").entry_points}
assert found == {("lmms_eval.models", "mqt_llava"), ("vllm.general_plugins", "mqt_llava")}, found
"""


class ReleaseError(Exception):
    pass


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", help="an empty folder, or a new one")
    parser.add_argument("--rehearsal", action="store_true", help="of what lies here, committed and dated or not")
    args = parser.parse_args(argv)
    try:
        if args.output.exists() and any(args.output.iterdir()):
            raise ReleaseError(f"{args.output} is not empty.")
        if not args.rehearsal:
            check_is_ready()
        with tempfile.TemporaryDirectory() as folder:
            sdist, wheel = build(Path(folder), args.output)
            try_in_an_empty_environment(Path(folder) / "empty", wheel)
    except ReleaseError as error:
        sys.exit(f"No release: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"No release: {' '.join(map(str, error.cmd))} failed.\n{error.stdout}\n{error.stderr}")
    print(f"\nBuilt and tried: {sdist.name}, {wheel.name}.")
    if not args.rehearsal:
        print(f"Nothing is uploaded yet. To publish, which cannot be undone:\n\n    twine upload {sdist} {wheel}")


def check_is_ready() -> None:
    """
    Raises:
        ReleaseError: Something is not committed, or the changelog has no date for this version yet.
    """
    if changes := run("git", "status", "--short", folder=REPOSITORY):
        raise ReleaseError(f"these files are not committed:\n{changes}")
    heading = re.search(r"(?m)^## .*$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"))[0]
    version = run(sys.executable, "setup.py", "--version", folder=REPOSITORY).split()[-1]
    if not re.fullmatch(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        raise ReleaseError(f"CHANGELOG.md begins with {heading!r}, but must begin with '## {version} (YYYY-MM-DD)'.")


def build(folder: Path, output: Path) -> tuple[Path, Path]:
    """
    An sdist, and a wheel that is built from it.

    Raises:
        ReleaseError: They lack something, hold too much, or a wheel that is built from here is another.
    """
    tools, source = make_environment(folder / "tools", *TOOLS), folder / "source"
    copy_source(source)
    say("build an sdist, and a wheel from it")
    run(tools, "-m", "build", "--outdir", output.resolve(), folder=source)
    run(tools, "-m", "build", "--wheel", "--outdir", folder / "from_here", folder=source)
    (sdist,), (wheel,), (other,) = output.glob("*.tar.gz"), output.glob("*.whl"), (folder / "from_here").glob("*.whl")
    say("check their metadata and what is in them")
    run(tools, "-m", "twine", "check", "--strict", sdist, wheel, folder=REPOSITORY)
    files, same = read_wheel(wheel), read_wheel(other)
    if different := sorted(name for name in files.keys() | same.keys() if files.get(name) != same.get(name)):
        raise ReleaseError(f"the wheel from the sdist differs from one from here: {', '.join(different)}.")
    with tarfile.open(sdist) as archive:
        names = [*files, *(member.name.partition("/")[2] for member in archive if member.isfile())]
    if unwanted := sorted(name for name in names if UNWANTED.search(name)):
        raise ReleaseError(f"these files would be published: {', '.join(unwanted)}.")
    modules = [path.relative_to(source / "src").as_posix() for path in source.glob("src/**/*.py")]
    if missing := sorted({*WANTED, *modules} - files.keys()):
        raise ReleaseError(f"the wheel lacks {', '.join(missing)}.")
    return sdist, wheel


def copy_source(folder: Path) -> None:
    """What git knows or would, links as links: a build leaves files behind, and takes along what it finds."""
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=REPOSITORY).splitlines():
        if os.path.lexists(REPOSITORY / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name, follow_symlinks=False)


def read_wheel(wheel: Path) -> dict[str, bytes]:
    """Its files; without RECORD, which lists them."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def try_in_an_empty_environment(folder: Path, wheel: Path) -> None:
    say("install the wheel and what it asks for into an empty environment")
    python = make_environment(folder, wheel)
    run(python, "-m", "pip", "check", folder=folder)
    run(python, "-c", PROBE, folder=folder)
    for name in ("convert_mqt_llava", "convert_quecc_llava"):
        run(python, "-m", f"mqt_llava.conversion.{name}", "--help", folder=folder)
    say("run the README's first snippet there, and the one for wheels")
    first, *_ = python_blocks("README.md")
    (alone,) = (block for block in python_blocks("docs/checkpoints.md") if "EMBEDDED_CHECKPOINT" in block)
    print(run(python, "-c", first, folder=REPOSITORY))
    print(run(python, "-c", alone, folder=folder))


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text("utf-8"), re.DOTALL)


def make_environment(folder: Path, *requirements: str | Path) -> Path:
    """The Python of a new virtual environment with these requirements."""
    run(sys.executable, "-m", "venv", folder, folder=REPOSITORY)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", *requirements, folder=REPOSITORY)
    return python


def run(*command: str | Path, folder: Path) -> str:
    """What a command prints; a failure is a `CalledProcessError` with what it printed as an error."""
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def say(step: str) -> None:
    print(f"* {step}", flush=True)


if __name__ == "__main__":
    main()
