"""Stops the build where a page would fetch something from another server when it is opened."""

import re

from mkdocs.exceptions import PluginError


ELSEWHERE = r"""="?(?:https?:)?//[^">]+"""
FETCHED = re.compile(rf"<(?:script|img|iframe|source|video)\b[^>]*\bsrc{ELSEWHERE}|<link\b[^>]*\bhref{ELSEWHERE}")


def on_post_page(output, page, config):
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch this: {found[0]}")
