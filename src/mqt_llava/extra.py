"""Packages that only pictures need."""

import importlib
from types import ModuleType


def import_extra(name: str) -> ModuleType:
    """
    Imports a module of the extra `visual`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if str(error.name).partition(".")[0] != package:  # it is there, but lacks something itself
            raise
        raise ImportError(f'This needs {package}: `pip install "mqt_llava[visual]"`.') from error
