"""
The code blocks of README and docs, fenced or indented, and where each is run. To list them:

    python -m tests.docs.code_blocks

A block without a comment is run by `test_code_blocks.py`. The comment in front of another says which test runs it, or
why none does:

    <!-- run by tests/docs/test_speed.py::test_snippets_run -->
    <!-- not run: needs the network -->
"""

import re
from dataclasses import dataclass

from tests.builders.paths import REPOSITORY


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
COMMENT = re.compile(r"<!-- (run by .+|not run: .+) -->")


@dataclass
class Block:
    page: str
    line: int
    language: str  # "python", or "shell" for what is indented
    lines: list[str]
    comment: str | None

    def __str__(self) -> str:
        where = self.comment or "run by tests/docs/test_code_blocks.py"
        return f"{self.page}:{self.line}\t{self.language}\t{self.lines[0].strip()[:60]}\t{where}"


def find_blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page in their order; of a text in its place, for tests."""
    lines = ((REPOSITORY / page).read_text() if text is None else text).splitlines()
    blocks, comment, start = [], None, 0
    while start < len(lines):
        line, end = lines[start], start + 1
        if line.startswith("```"):
            end = lines.index("```", end) + 1
            blocks.append(Block(page, start + 2, line[3:], lines[start + 1 : end - 1], comment))
        elif line.startswith("    ") and (start == 0 or not lines[start - 1] or comment):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end]):
                end += 1
            blocks.append(Block(page, start + 1, "shell", [line[4:] for line in lines[start:end]], comment))
        found = COMMENT.fullmatch(line)
        if line:
            comment = found and found[1]
        start = end
    return blocks


if __name__ == "__main__":
    for page in PAGES:
        print(*find_blocks(page), sep="\n")
