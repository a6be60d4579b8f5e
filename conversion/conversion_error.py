"""The one error that the conversion reports to the person at the command line instead of a traceback."""


class ConversionError(ValueError):
    """The input cannot be converted as asked. The message says what was found, where, and what would be allowed."""


def listed(names, limit: int = 10) -> str:
    """Names for an error message: the first `limit` in order, and how many more there are."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
