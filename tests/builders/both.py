"""What tests need to ask the same of both models."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from mqt_llava import MQTLlavaForConditionalGeneration, QueCCLlavaForConditionalGeneration
from tests.builders.configs import tiny_config, tiny_quecc_config
from tests.builders.models import random_model, random_quecc_model
from tests.builders.prompts import random_inputs, random_quecc_inputs
from tests.builders.quecc import ROWS


class Case(NamedTuple):
    """
    A small model.

    Args:
        rows: Of a batch for `make_inputs`. The first two hold three images at 4 visual tokens at most.
    """

    model_class: type
    make_config: Callable
    make_model: Callable
    make_inputs: Callable
    rows: tuple


MQT = Case(MQTLlavaForConditionalGeneration, tiny_config, random_model, random_inputs, ([1, 4], [3], [], [16, 7, 2]))
QUECC = Case(QueCCLlavaForConditionalGeneration, tiny_quecc_config, random_quecc_model, random_quecc_inputs, ROWS)
BOTH = pytest.mark.parametrize("case", [MQT, QUECC], ids=["mqt", "quecc"])


def image_inputs(inputs: dict) -> dict:
    """What `get_image_features` takes of a processor's output."""
    return {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
