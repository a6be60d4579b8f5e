"""
What a query transformer has to beat: two ways to m visual tokens that need no compressor. Both keep the LLaVA's
projector, and stand in for a query transformer in an elastic model; m must be a square.
"""

import math

import torch
from torch import nn
from train_llava import PATCH
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration, MQTLlavaModel


class Projector(LlavaMultiModalProjector):
    def __init__(self, config: MQTLlavaConfig):
        super().__init__(LlavaConfig(vision_config=config.vision_config, text_config=config.text_config))


class AveragePooling(Projector):
    """The patches, averaged to a smaller square of them, as in "Matryoshka Multimodal Models" (arXiv 2405.17430)."""

    def forward(self, patches: torch.Tensor, num_visual_tokens: int) -> torch.Tensor:
        grid = patches.transpose(1, 2).unflatten(2, (math.isqrt(patches.shape[1]), -1))
        pooled = nn.functional.adaptive_avg_pool2d(grid, math.isqrt(num_visual_tokens))
        return super().forward(pooled.flatten(2).transpose(1, 2))


class AveragePoolingModel(MQTLlavaModel):
    resampler_class = AveragePooling


class ScaledImageModel(MQTLlavaModel):
    """The image, scaled down to as many patches as it may have tokens."""

    resampler_class = Projector

    def get_image_features(self, pixel_values, visual_token_counts, **kwargs):
        (num_visual_tokens,) = {int(count) for count in visual_token_counts}
        pixels = math.isqrt(num_visual_tokens) * PATCH
        scaled = nn.functional.interpolate(pixel_values, (pixels, pixels), mode="bilinear", antialias=True)
        outputs, (patches,) = self.encode_patches(scaled, interpolate_pos_encoding=True)
        return BaseModelOutputWithPooling(outputs.last_hidden_state, list(self.resampler(patches)))


class AveragePoolingLlava(MQTLlavaForConditionalGeneration):
    model_class = AveragePoolingModel


class ScaledImageLlava(MQTLlavaForConditionalGeneration):
    model_class = ScaledImageModel


CLASSES = {
    "queries": MQTLlavaForConditionalGeneration,
    "average_pooling": AveragePoolingLlava,
    "scaled_image": ScaledImageLlava,
}


def make_elastic(llava: LlavaForConditionalGeneration, compressor: str, **kwargs) -> MQTLlavaForConditionalGeneration:
    """An elastic model around a LLaVA's parts, by a name in `CLASSES`."""
    model = CLASSES[compressor].from_llava(llava, **kwargs)
    if compressor != "queries":
        model.model.resampler.load_state_dict(llava.model.multi_modal_projector.state_dict())
    return model
