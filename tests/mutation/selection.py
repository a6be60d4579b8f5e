"""Which tests meet a mutant, and in which order."""

import ast
from pathlib import Path, PurePath

from .sites import Mutant


class Selection:
    """
    Args:
        recorded: What [`Recorder`] says of each test file.
    """

    def __init__(self, root: Path, recorded: list[dict]):
        self.root, self.seconds, self.lines = root, {}, {}
        for record in recorded:
            seconds = record["seconds"]
            self.seconds.update(seconds)
            for file, by_line in record["lines"].items():
                for line, tests in by_line.items():
                    known = self.lines.setdefault(file, {}).setdefault(int(line), set())
                    known |= seconds.keys() & (tests if "" not in tests else seconds)

    def tests(self, mutant: Mutant) -> dict[str, float]:
        """The tests that execute the mutant, in the order in which they run, with the seconds that they take."""
        first, last = self.scope(mutant)
        by_line = self.lines.get(mutant.file, {})
        tests = set().union(*(tests for line, tests in by_line.items() if first <= line <= last))
        if first == 1:  # what is read of an imported module, such as a dataclass's fields, executes no line of it
            tests |= {test for test in self.seconds if self.is_mirrored(mutant, test)}
        return {test: self.seconds[test] for test in sorted(tests, key=lambda test: self.rank(mutant, test))}

    def scope(self, mutant: Mutant) -> tuple[int, int]:
        """
        The lines whose tests meet a mutant. What is executed on import has none of its own, so the lines of its
        function stand for a default value, and those of its file for a constant.
        """
        first, last = mutant.lines
        tree = ast.parse((self.root / mutant.file).read_bytes())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        if any(function.body[0].lineno <= first <= function.end_lineno for function in functions):
            return first, last
        heads = [function for function in functions if first <= function.lineno <= last]
        return (heads[0].lineno, heads[0].end_lineno) if heads else (1, tree.body[-1].end_lineno)

    def rank(self, mutant: Mutant, test: str) -> tuple:
        """Fast before slow, the mirrored file first; files together, since fixtures live as long as their file."""
        file, seconds = test.partition("::")[0], self.seconds[test]
        pace = 0 if seconds < 0.3 else 1 if seconds < 3 else 2
        return pace, not self.is_mirrored(mutant, test), file, seconds, test

    def is_mirrored(self, mutant: Mutant, test: str) -> bool:
        return PurePath(test.partition("::")[0]).stem == f"test_{PurePath(mutant.file).stem}"
