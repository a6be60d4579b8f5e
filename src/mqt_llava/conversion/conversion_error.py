"""The one error that the conversion reports to the person at the command line instead of a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ConversionError(ValueError):
    """The input cannot be converted as asked. The message says what was found, where, and what would be allowed."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """
    Around a library that is handed what a file says. Over values that it did not expect it raises whatever it likes,
    so that no list of exceptions would be complete; each becomes a `ConversionError` that begins with `what`.
    """
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{what}: {one_line(f'{type(error).__name__}: {error}', 400)}") from error


def one_line(text: str, limit: int = 4000) -> str:
    """The text on one line, cut where it becomes too long to be read."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 4] + " ..."


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Names for an error message: the first `limit` in order, and how many more there are."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
