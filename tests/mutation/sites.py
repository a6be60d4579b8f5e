"""The places where a mutant can be, and the draw among them."""

import ast
import difflib
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from .operators import Text, edits, is_number


@dataclass(frozen=True)
class Mutant:
    """
    Args:
        file: Relative to the root of the repository.
        lines: The first and the last line of the statement that it changes; of a block, of its head.
        start, end: The bytes of the file that are replaced.
    """

    file: str
    operator: str
    lines: tuple[int, int]
    start: int
    end: int
    replacement: str
    diff: str = ""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def draw(root: Path, files: list[str], number: int, seed: int) -> list[Mutant]:
    """So many mutants, uniformly of all that compile."""
    sources = {file: (root / file).read_bytes() for file in files}
    mutants = [mutant for file, source in sources.items() for mutant in mutants_of(file, source)]
    random.Random(seed).shuffle(mutants)
    compiling = (mutant for mutant in mutants if compiles(mutant.apply(sources[mutant.file])))
    return [replace(mutant, diff=diff(sources[mutant.file], mutant)) for mutant in islice(compiling, number)]


def mutants_of(file: str, source: bytes) -> Iterator[Mutant]:
    text = Text(source)
    for node, lines in nodes(ast.parse(source), (1, 1)):
        for operator, start, end, replacement in edits(node, text):
            yield Mutant(file, operator, lines, start, end, replacement.decode())


def nodes(node: ast.AST, lines: tuple[int, int]) -> Iterator[tuple[ast.AST, tuple[int, int]]]:
    """Nodes whose change changes what a program does, with the lines of their statements."""
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        lines = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno)
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "TypeVar":
        return
    yield node, lines
    # What a refusal says is no behaviour; where the parts of an f-string stand differs between versions of Python.
    is_all = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    if isinstance(node, ast.Raise | ast.JoinedStr) or is_number(node) or is_all:
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from nodes(child, lines)


def compiles(source: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def diff(source: bytes, mutant: Mutant) -> str:
    before, after = (text.decode().splitlines() for text in (source, mutant.apply(source)))
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
