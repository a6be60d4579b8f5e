# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
MQT-LLaVA: a vision tower, a query transformer that compresses an image into nested visual tokens, and a decoder.

The contract: output i of the query transformer depends on query i alone, so the first m tokens of an image are the
same whether m or M of them were computed. Everything that is elastic about the model follows from that.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .card_compressed_llava import CardTexts
from .configuration_mqt_llava import MQTLlavaConfig
from .fitting_compressed_llava import cut_visual_tokens
from .generation_mqt_llava import MQTLlavaGenerationMixin
from .modeling_compressed_llava import (
    CompressedLlavaCausalLMOutputWithPast,
    CompressedLlavaForConditionalGeneration,
    CompressedLlavaModel,
    CompressedLlavaModelOutputWithPast,
    CompressedLlavaPreTrainedModel,
    encoded_images,
    refuse_other_features,
)
from .numbers_compressed_llava import check_num_visual_tokens
from .prompt_compressed_llava import visual_tokens_per_image
from .resampler_mqt_llava import MQTLlavaResampler, sine_cosine_positions


class MQTLlavaPreTrainedModel(CompressedLlavaPreTrainedModel):
    config: MQTLlavaConfig
    _no_split_modules = ["MQTLlavaResampler"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, MQTLlavaResampler):
            max_visual_tokens, width = module.query_positions.shape
            init.copy_(module.query_positions, sine_cosine_positions(math.isqrt(max_visual_tokens), width))
            init.trunc_normal_(module.query, std=0.02)
            init.normal_(module.proj.weight, std=width**-0.5)
            # As `nn.MultiheadAttention` starts, in which the original keeps the three as one (3 width, width) matrix.
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.uniform_(projection.weight, -math.sqrt(1.5 / width), math.sqrt(1.5 / width))


class MQTLlavaModel(MQTLlavaPreTrainedModel, CompressedLlavaModel):
    """Vision tower, query transformer and decoder, without a language model head."""

    resampler_class = MQTLlavaResampler

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        visual_token_counts: torch.Tensor | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Encodes images into visual tokens.

        Args:
            pixel_values: `(images, channels, height, width)`.
            visual_token_counts: How many tokens each image gets, `(images,)`; all M of them by default. Since tokens
                nest, M tokens can be cut down to any fewer later: `tokens[:m]`.

        Returns:
            The vision tower's output; its `pooler_output` is a list with one tensor `(tokens, hidden_size)` per image.
            Hidden states that are asked for have the whole tower's indices, with `None` for layers that are not built.

        Raises:
            ValueError: A count outside 1..M, not one count per image, or other features than the configured ones.
        """
        max_visual_tokens, num_images = self.config.max_visual_tokens, len(pixel_values)
        if visual_token_counts is None:
            counts = [max_visual_tokens] * num_images
        else:
            counts = check_num_visual_tokens(
                visual_token_counts, max_visual_tokens, num_images, name="visual_token_counts"
            )

        image_outputs, (patches,) = self.encode_patches(pixel_values, **kwargs)
        visual_tokens = self.resampler(patches, num_queries=max([1, *counts]))
        return BaseModelOutputWithPooling(
            last_hidden_state=image_outputs.last_hidden_state,
            pooler_output=[tokens[:count] for tokens, count in zip(visual_tokens, counts)],
            hidden_states=image_outputs.hidden_states,
            attentions=image_outputs.get("attentions"),
        )

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_token_counts: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CompressedLlavaModelOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(num_images, num_channels, image_size, image_size)`, *optional*):
            The images of all prompts, one after the other, from the processor.
        visual_token_counts (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            How many of the placeholders belong to each image, from the processor. By default the images share them
            equally.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": output of get_image_features}` in place of `pixel_values`: images that are already encoded, with
            at least as many visual tokens as the prompt has placeholders for.

        Returns:
            A [`CompressedLlavaModelOutputWithPast`], or its entries as a tuple where `return_dict=False`.
        """
        refuse_other_features(self.config, kwargs)
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        image_outputs = encoded_images(mm_encoder_outputs)
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        placeholder_mask = None
        if pixel_values is not None or image_outputs is not None:
            placeholder_mask = self.get_placeholder_mask(input_ids, inputs_embeds)
            # While tracing, the placeholders cannot be counted: without counts they are taken to be as many as the
            # features, which is checked below. Images that were encoded to fit, or that `generate` cut into the
            # chunks of a long prompt, are as many tokens as there are placeholders.
            fits = visual_token_counts is None and (
                torch.compiler.is_compiling()
                or image_outputs is not None
                and sum(len(tokens) for tokens in image_outputs.pooler_output) == placeholder_mask.sum()
            )
            counts = None
            if not fits:
                num_images = len(pixel_values) if image_outputs is None else len(image_outputs.pooler_output)
                counts = visual_tokens_per_image(
                    placeholder_mask, num_images, self.config.max_visual_tokens, visual_token_counts
                )
            if image_outputs is None:
                image_outputs = self.get_image_features(pixel_values, counts, return_dict=True)
            elif not fits:
                image_outputs = cut_visual_tokens(image_outputs, counts)
        return self.run_decoder(
            inputs_embeds,
            placeholder_mask,
            image_outputs,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class MQTLlavaForConditionalGeneration(
    MQTLlavaGenerationMixin, MQTLlavaPreTrainedModel, CompressedLlavaForConditionalGeneration
):
    """MQT-LLaVA with its language model head: answers questions about images at any number of visual tokens."""

    model_class = MQTLlavaModel
    card_texts = CardTexts(
        tag="mqt-llava",
        number_name="max_visual_tokens",
        introduction=(
            "MQT-LLaVA answers questions about images with as many visual tokens as you like to spend: any number "
            "from 1 to\n{number} per image, chosen per call, with the same weights. See\n"
            "[Matryoshka Query Transformer for Large Vision-Language Models](https://arxiv.org/abs/2405.19315)."
        ),
        prompt_arguments='\n    processor_kwargs={{"num_visual_tokens": {few}}},',
    )

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        visual_token_counts: torch.Tensor | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """See [`MQTLlavaModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, visual_token_counts, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        visual_token_counts: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CompressedLlavaCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(num_images, num_channels, image_size, image_size)`, *optional*):
            The images of all prompts, one after the other, from the processor.
        visual_token_counts (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            How many of the placeholders belong to each image, from the processor. By default the images share them
            equally.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": output of get_image_features}` in place of `pixel_values`: images that are already encoded, with
            at least as many visual tokens as the prompt has placeholders for.

        Returns:
            A [`CompressedLlavaCausalLMOutputWithPast`], or its entries as a tuple where `return_dict=False`.

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoProcessor
        >>> from mqt_llava import MQTLlavaForConditionalGeneration

        >>> model = MQTLlavaForConditionalGeneration.from_pretrained("model_cards/mqt-llava-tiny")
        >>> processor = AutoProcessor.from_pretrained("model_cards/mqt-llava-tiny")

        >>> prompt = "USER: <image>\nIs there any footwear? ASSISTANT:"
        >>> inputs = processor(images=Image.open("mosaic.png"), text=prompt, num_visual_tokens=4, return_tensors="pt")
        >>> generated = model.generate(**inputs, max_new_tokens=16)
        >>> processor.batch_decode(generated[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            visual_token_counts=visual_token_counts,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        return self.add_head(outputs, labels, logits_to_keep, **kwargs)


MQTLlavaModel.register_for_auto_class("AutoModel")
MQTLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["MQTLlavaForConditionalGeneration", "MQTLlavaModel", "MQTLlavaPreTrainedModel"]
