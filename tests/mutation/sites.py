"""The places where a mutant can be, and the draw among them."""

import ast
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
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
    """
    So many mutants, uniformly of all that compile. Each has a lot by itself, from the seed and from what it changes:
    what changes elsewhere leaves it drawn.
    """
    sources = {file: (root / file).read_bytes() for file in files}
    mutants, alike = [], Counter()
    for file, source in sources.items():
        for mutant in mutants_of(file, source):
            mutant = replace(mutant, diff=diff(source, mutant))
            what = (seed, file, mutant.operator, mutant.diff)
            alike[what] += 1
            mutants.append((random.Random(repr((what, alike[what]))).random(), mutant))
    drawn = (mutant for _, mutant in sorted(mutants, key=itemgetter(0)))
    return list(islice((one for one in drawn if compiles(one.apply(sources[one.file]))), number))


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
    """The lines that it changes, before and after."""
    changed = mutant.apply(source)
    first, last = source.rfind(b"\n", 0, mutant.start) + 1, source.find(b"\n", mutant.end)
    before, after = source[first:last], changed[first : last + len(changed) - len(source)]
    return "\n".join(
        f"{mark}{line}" for mark, text in zip("-+", (before, after)) for line in text.decode().splitlines()
    )
