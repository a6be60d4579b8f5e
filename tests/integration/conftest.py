"""Folders as `save_pretrained` leaves them, of both models, with the same tokenizer; for reading only."""

import copy
from pathlib import Path

import pytest
from transformers import LlavaImageProcessorPil

from mqt_llava import QueCCLlavaProcessor
from tests.builders.configs import TEXT_CONFIG, tiny_quecc_config
from tests.builders.models import random_quecc_model


@pytest.fixture(scope="session")
def mqt_folder(golden_model, processor, tmp_path_factory) -> Path:
    return save(golden_model, processor, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="session")
def quecc_folder(processor, tmp_path_factory) -> Path:
    tokenizer = copy.deepcopy(processor.tokenizer)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    image_processor = LlavaImageProcessorPil.from_dict({**processor.image_processor.to_dict(), **size})
    config = tiny_quecc_config(
        text_config={**TEXT_CONFIG, "vocab_size": len(tokenizer)}, image_token_id=processor.image_token_id
    )
    quecc = QueCCLlavaProcessor(image_processor, tokenizer, max_visual_tokens=config.num_visual_tokens)
    return save(random_quecc_model(config), quecc, tmp_path_factory.mktemp("saved") / "model")


def save(model, processor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
