"""
What a mutant changes: each operator gives the edits that it makes of a node of the syntax tree.

They are the usual ones (Offutt's sufficient set, statement deletion, and what mutmut and cosmic-ray have besides), but
an edit replaces a few bytes of the source and nothing else, so that a mutant is read as a diff of one line.
"""

import ast
import re
from collections.abc import Callable, Iterator


# Start and end of the bytes that are replaced, and what with.
Edit = tuple[int, int, bytes]
OPERATORS: list[Callable[[ast.AST, "Text"], Iterator[Edit]]] = []
SWAPPED_SIGNS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in", "and": "or", "or": "and",
    "+": "-", "-": "+", "*": "//", "/": "*", "//": "*", "%": "*", "**": "*", "&": "|", "|": "&",
}  # fmt: skip
SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin"}
SIGN = re.compile(rb"is\s+not\b|not\s+in\b|is\b|in\b|and\b|or\b|[<>=!]=|\*\*|//|[-+*/%&|<>]")


class Text:
    """The source of a module, by bytes as `ast` counts them."""

    def __init__(self, source: bytes):
        self.source = source
        self.line_starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> bytes:
        start, end = self.span(node)
        return self.source[start:end]

    def sign_between(self, left: ast.AST, right: ast.AST) -> Iterator[Edit]:
        """The sign between two operands, swapped."""
        start, end = self.span(left)[1], self.span(right)[0]
        sign = SIGN.search(self.source, start, end)
        if sign and (swapped := SWAPPED_SIGNS.get(b" ".join(sign[0].split()).decode())):
            yield sign.start(), sign.end(), swapped.encode()


def is_number(node: ast.AST) -> bool:
    """A constant, with its sign; True and False are some."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def operator(find: Callable) -> Callable:
    OPERATORS.append(find)
    return find


@operator
def swap_comparison(node, text):
    if isinstance(node, ast.Compare):
        for left, right in zip([node.left, *node.comparators], node.comparators):
            yield from text.sign_between(left, right)


@operator
def swap_and_or(node, text):
    if isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:]):
            yield from text.sign_between(left, right)


@operator
def swap_arithmetic(node, text):
    if isinstance(node, ast.BinOp):
        yield from text.sign_between(node.left, node.right)
    if isinstance(node, ast.AugAssign):
        yield from text.sign_between(node.target, node.value)


@operator
def drop_unary(node, text):
    """`not x`, `-x` and `~x` to `x`."""
    if isinstance(node, ast.UnaryOp) and not is_number(node):
        start, _ = text.span(node)
        yield start, start + (3 if isinstance(node.op, ast.Not) else 1), b""


@operator
def negate_condition(node, text):
    conditions = node.ifs if isinstance(node, ast.comprehension) else [getattr(node, "test", None)]
    for condition in conditions:
        # Whose negation is a mutant of another operator already.
        is_negated = isinstance(condition, ast.UnaryOp | ast.Compare)
        if condition is not None and not is_negated:
            yield *text.span(condition), b"not (" + text.of(condition) + b")"


@operator
def change_constant(node, text):
    """A number to the next one, -1 to 0, True to False."""
    if is_number(node):
        value = ast.literal_eval(node)
        yield *text.span(node), repr(not value if isinstance(value, bool) else value + 1).encode()


@operator
def change_key(node, text):
    """A string by which something is looked up or stored, or which is a default."""
    keys = []
    if isinstance(node, ast.Subscript):
        keys = [node.slice]
    elif isinstance(node, ast.Dict):
        keys = node.keys
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        keys = node.args[:1] if node.func.attr in ("get", "pop", "setdefault") else []
    elif isinstance(node, ast.arguments):
        keys = [*node.defaults, *node.kw_defaults]
    for key in keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield *text.span(key), repr(key.value + "_").encode()


@operator
def return_none(node, text):
    if isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None):
        yield *text.span(node.value), b"None"


@operator
def delete_statement(node, text):
    """A call, an assignment to an attribute or an item, a refusal."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    is_store = isinstance(node, ast.Assign | ast.AugAssign) and isinstance(targets[0], ast.Attribute | ast.Subscript)
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if is_store or is_call or isinstance(node, ast.Raise):
        yield *text.span(node), b"pass"


@operator
def drop_keyword(node, text):
    for keyword in node.keywords if isinstance(node, ast.Call) else ():
        if keyword.arg is not None:
            start, end = text.span(keyword)
            yield start, re.compile(rb"\s*,?").match(text.source, end).end(), b""


@operator
def shift_slice(node, text):
    """Bounds that are no numbers: those have a mutant already."""
    for bound in (node.lower, node.upper) if isinstance(node, ast.Slice) else ():
        if bound is not None and not is_number(bound):
            yield *text.span(bound), b"(" + text.of(bound) + b") + 1"


@operator
def swap_name(node, text):
    """`min` to `max`, `any` to `all`, as functions and as methods."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
    if name in SWAPPED_NAMES:
        _, end = text.span(node)
        yield end - len(name), end, SWAPPED_NAMES[name].encode()
