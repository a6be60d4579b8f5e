"""The models under test and the images they are shown. All are made once; no case may change them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from random import Random

import torch

from tests.builders.configs import TEXT_CONFIG, decoder_config, tiny_config
from tests.builders.models import random_model, random_quecc_model
from tests.builders.prompts import pad, random_pixels

from .oracle import Oracle
from .rows import Image


POOL_SIZE = 8
OPTIONS = {
    # M and the patches are no longer on one raster.
    "small": {"max_visual_tokens": 9, "resampler_num_attention_heads": 4},
    # Sliding windows and frequencies that follow the length are computed from the start by an adaptive budget.
    "sliding": {"text_config": {**TEXT_CONFIG, "model_type": "mistral", "sliding_window": 6}},
}
NAMES = ("llama", "llama", "llama", "qwen2", "gpt_neox", "small", "sliding")


@dataclass
class Subject:
    name: str
    model: torch.nn.Module
    assistant: torch.nn.Module
    oracle: Oracle

    @property
    def is_quecc(self) -> bool:
        return self.oracle.is_quecc

    @property
    def most(self) -> int:
        """The most visual tokens of an image; QueCC's only number."""
        config = self.model.config
        return config.num_visual_tokens if self.is_quecc else config.max_visual_tokens

    def image_inputs(self, images: list[Image], side: str = "left") -> dict[str, torch.Tensor]:
        """Pixels, and for QueCC the questions."""
        inputs = {"pixel_values": self.oracle.pool[[image.index for image in images]]}
        if self.is_quecc:
            questions = [list(image.question) for image in images]
            inputs["query_input_ids"], inputs["query_attention_mask"] = pad(questions, side)
        return inputs


@cache
def subject(name: str) -> Subject:
    if name == "quecc":
        models = [random_quecc_model(seed=seed) for seed in (0, 1)]
    else:
        options = OPTIONS.get(name) or {"text_config": decoder_config(name)}
        models = [random_model(tiny_config(**options), seed) for seed in (0, 1)]
    for model in models:
        model.generation_config.pad_token_id = 0
    return Subject(name, *models, Oracle(models[0], random_pixels(POOL_SIZE)))


def random_subject(rng: Random, quecc: float = 0.0) -> Subject:
    return subject("quecc" if rng.random() < quecc else rng.choice(NAMES))


@contextmanager
def training(model, is_training: bool) -> Iterator:
    """As a trainer leaves it that evaluates in between: transformers then drops the cache, with a warning."""
    if is_training:
        model.gradient_checkpointing_enable()
        model.train()
    try:
        yield
    finally:
        if is_training:
            model.gradient_checkpointing_disable()
            model.eval()


@contextmanager
def own_generation_config(model) -> Iterator:
    """The model's generation config, to be changed by this case alone."""
    kept = model.generation_config
    model.generation_config = copy.deepcopy(kept)
    try:
        yield model.generation_config
    finally:
        model.generation_config = kept
