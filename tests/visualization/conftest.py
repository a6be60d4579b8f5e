"""An answer of a tiny random model in float64, for comparisons with finite differences."""

import pytest
import torch

from mqt_llava.visualization import ImageAnswer
from tests.builders.configs import decoder_config, tiny_config
from tests.builders.models import random_model
from tests.builders.prompts import IMAGE_TOKEN_ID, random_pixels


@pytest.fixture
def answer() -> ImageAnswer:
    """M = 16 visual tokens from 4 x 4 patches, and an answer of 3 tokens."""
    model = random_model(tiny_config(text_config=decoder_config("gpt2"))).double()  # Llama norms in float32
    with torch.no_grad():
        patches, blank = model.model.encode_patches(random_pixels(2).double())[1][0].split(1)
    prompt_ids = torch.tensor([1, 11, *[IMAGE_TOKEN_ID] * 16, 31, 41])
    return ImageAnswer(model, prompt_ids, torch.tensor([51, 52, 2]), patches, blank, ["a", "b", "</s>"])
