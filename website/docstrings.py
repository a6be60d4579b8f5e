"""Docstrings, written as in transformers, for the site: links to names, and types of arguments."""

import re

import griffe


LINK = re.compile(r"\[`~?([\w.]+)`\](?![(\[])")  # [`AdaptiveBudget`]
ARGUMENT = re.compile(r"(?m)^( +\w[\w, ]* \()(`.+)(\):$)")  # levels (`list[int]`, *optional*):
DECORATION = re.compile(r", (\*optional\*|defaults to .*)|`|\[(?=`)|(?<=`)\]")  # the signature shows defaults


class Docstrings(griffe.Extension):
    """Links lead to the API reference. A name that is in no `__all__`, or has no docstring, stays code."""

    def on_package(self, *, pkg, **kwargs):
        packages = [pkg, *(module for module in pkg.modules.values() if not module.is_alias)]
        public = {name: f"{module.path}.{name}" for module in packages for name in module.exports or ()}

        def link(match):
            name, _, member = match[1].partition(".")
            path = ".".join(filter(None, (public.get(name), member)))
            is_shown = name in public and pkg.modules_collection[path].docstring
            return f"[`{match[1]}`][{path}]" if is_shown else f"`{match[1]}`"

        def plain_type(match):
            return match[1] + DECORATION.sub("", match[2]) + match[3]

        for part in walk(pkg):
            if part.docstring:
                part.docstring.value = LINK.sub(link, ARGUMENT.sub(plain_type, part.docstring.value))


def walk(part):
    yield part
    for member in part.members.values():
        if not member.is_alias:
            yield from walk(member)
