"""The API reference names everything that is public."""

import re

import mqt_llava
from tests.builders.paths import REPOSITORY


def test_every_public_name_of_the_package_has_its_place():
    page = (REPOSITORY / "docs" / "reference" / "models.md").read_text()
    assert sorted(re.findall(r"^::: mqt_llava\.(\w+)$", page, re.MULTILINE)) == sorted(mqt_llava.__all__)
