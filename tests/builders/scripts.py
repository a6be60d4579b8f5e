"""Scripts of examples/, benchmarks/ and model_cards/, loaded by their path."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.builders.paths import REPOSITORY


NEIGHBOURS: dict[Path, dict[str, ModuleType]] = {}  # by folder, what was loaded there


@cache
def load_script(path: str) -> ModuleType:
    """The module of a script, as `examples/demo.py`. While it loads it finds its neighbours; nothing else does."""
    script = REPOSITORY / path
    with folder_on_the_path(script.parent):
        return importlib.import_module(script.stem)


@contextmanager
def folder_on_the_path(folder: Path) -> Iterator[None]:
    names = {path.stem for path in folder.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.modules.update(NEIGHBOURS.get(folder, {}))
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        NEIGHBOURS[folder] = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
        sys.modules.update(others)
