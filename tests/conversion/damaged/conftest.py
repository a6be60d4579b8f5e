"""Both commands over originals that are damaged, or not what they seem."""

import pytest

from tests.builders.original_checkpoints import KINDS


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param
