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
            bad = {test for test, _ in record["not_passed"]}
            seconds = {test: time for test, time in record["seconds"].items() if test not in bad}
            self.seconds.update(seconds)
            for file, by_line in record["lines"].items():
                for line, tests in by_line.items():
                    known = self.lines.setdefault(file, {}).setdefault(int(line), {"test": set(), "collection": set()})
                    known["test"].update(seconds.keys() & tests)
                    known["collection"].update(seconds if "" in tests else ())

    def tests(self, mutant: Mutant) -> dict[str, float]:
        """The tests that execute the mutant, in the order in which they run, with the seconds that they take."""
        (first, last), kinds = self.scope(mutant)
        by_line = self.lines.get(mutant.file, {})
        known = [by_line[line][kind] for line in by_line if first <= line <= last for kind in kinds]
        tests = sorted(set().union(*known), key=lambda test: self.rank(mutant, test))
        return {test: self.seconds[test] for test in tests}

    def scope(self, mutant: Mutant) -> tuple[tuple[int, int], tuple[str, ...]]:
        """
        The lines whose tests meet a mutant, and when they must be executed. A line outside functions is executed by
        every import, so those of its function or of its file stand for it.
        """
        first, last = mutant.lines
        tree = ast.parse((self.root / mutant.file).read_bytes())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        if any(function.body[0].lineno <= first <= function.end_lineno for function in functions):
            return mutant.lines, ("test", "collection")
        for function in functions:
            if first <= function.lineno <= last:
                return (function.body[0].lineno, function.end_lineno), ("test", "collection")
        return (1, tree.body[-1].end_lineno), ("test",)

    def rank(self, mutant: Mutant, test: str) -> tuple:
        """Fast before slow, the mirrored file first; files together, since fixtures live as long as their file."""
        file, seconds = test.partition("::")[0], self.seconds[test]
        pace = 0 if seconds < 0.3 else 1 if seconds < 3 else 2
        is_mirrored = PurePath(file).stem == f"test_{PurePath(mutant.file).stem}"
        return pace, not is_mirrored, file, seconds, test
