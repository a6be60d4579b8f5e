"""Tables in Markdown."""


def table(head: str, lines: list[str]) -> str:
    """A table of a head and lines, whose cells stand between ` | `."""
    return "\n".join(f"| {line} |" for line in (head, " | ".join(["---"] * (head.count("|") + 1)), *lines))
