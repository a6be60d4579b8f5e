"""
What a mutant changes: the edits that operators make of a node of the syntax tree.

They are the usual ones: Offutt's sufficient set, statement deletion, and what mutmut and cosmic-ray have besides. An
edit replaces a few bytes and nothing else, so that a mutant is read as a diff of one line.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise


# Operator, start and end of the bytes that are replaced, and what with.
Edit = tuple[str, int, int, bytes]
SIGN = re.compile(rb"is\s+not\b|not\s+in\b|is\b|in\b|and\b|or\b|[<>=!]=|\*\*|//|[-+*/%&|<>]")
SWAPPED_SIGNS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "is": "is not", "is not": "is", "in": "not in", "not in": "in", "and": "or", "or": "and",
    "+": "-", "-": "+", "*": "//", "/": "*", "//": "*", "%": "*", "**": "*", "&": "|", "|": "&",
}  # fmt: skip
SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin"}


class Text:
    """The source of a module, by bytes as `ast` counts them."""

    def __init__(self, source: bytes):
        self.source = source
        self.line_starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def replaced(self, operator: str, node: ast.AST, template: str) -> Edit:
        """A node replaced by a text, in which {} is what it was."""
        start, end = self.span(node)
        return operator, start, end, template.encode().replace(b"{}", self.source[start:end])

    def swapped_signs(self, operator: str, *operands: ast.AST) -> Iterator[Edit]:
        for left, right in pairwise(operands):
            sign = SIGN.search(self.source, self.span(left)[1], self.span(right)[0])
            if sign and (swapped := SWAPPED_SIGNS.get(b" ".join(sign[0].split()).decode())):
                yield operator, sign.start(), sign.end(), swapped.encode()


def is_number(node: ast.AST) -> bool:
    """A constant, with its sign; True and False are some."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def edits(node: ast.AST, text: Text) -> Iterator[Edit]:
    keys, conditions = [], []
    match node:
        case _ if is_number(node):
            value = ast.literal_eval(node)
            yield text.replaced("next constant", node, repr(not value if isinstance(value, bool) else value + 1))
        case ast.Compare(left=first, comparators=others):
            yield from text.swapped_signs("other comparison", first, *others)
        case ast.BoolOp(values=values):
            yield from text.swapped_signs("and, or", *values)
        case ast.BinOp(left=left, right=right) | ast.AugAssign(target=left, value=right):
            yield from text.swapped_signs("other arithmetic", left, right)
        case ast.UnaryOp(op=op):
            start, _ = text.span(node)
            yield "no sign", start, start + (3 if isinstance(op, ast.Not) else 1), b""
        case ast.Call(func=function, args=arguments, keywords=keywords):
            for keyword in (keyword for keyword in keywords if keyword.arg):
                start, end = text.span(keyword)
                yield "no keyword argument", start, re.compile(rb"\s*,?").match(text.source, end).end(), b""
            if isinstance(function, ast.Attribute) and function.attr in ("get", "pop", "setdefault"):
                keys = arguments[:1]
        case ast.Subscript(slice=key):
            keys = [key]
        case ast.Dict():
            keys = node.keys
        case ast.arguments():
            keys = [*node.defaults, *node.kw_defaults]
        case ast.Slice(lower=lower, upper=upper):
            for bound in (bound for bound in (lower, upper) if bound is not None and not is_number(bound)):
                yield text.replaced("shifted slice", bound, "({}) + 1")
        case ast.If(test=condition) | ast.IfExp(test=condition) | ast.While(test=condition):
            conditions = [condition]
        case ast.comprehension():
            conditions = node.ifs
        case ast.Return(value=value) if not isinstance(value, ast.Constant | None):
            yield text.replaced("None returned", value, "None")
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in SWAPPED_NAMES:
            _, end = text.span(node)
            yield "min, max; any, all", end - len(name), end, SWAPPED_NAMES[name].encode()
    match node:
        case (
            ast.Raise() | ast.Expr(value=ast.Call())
            | ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_])
            | ast.AugAssign(target=ast.Attribute() | ast.Subscript())
        ):  # fmt: skip
            yield text.replaced("no statement", node, "pass")
    for key in keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield text.replaced("other string", key, repr(key.value + "_"))
    for condition in conditions:
        # Of a comparison or a `not`, another operator makes the opposite already.
        if not isinstance(condition, ast.UnaryOp | ast.Compare):
            yield text.replaced("opposite condition", condition, "not ({})")
