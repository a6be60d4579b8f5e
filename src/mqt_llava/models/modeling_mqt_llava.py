# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
MQT-LLaVA: a vision tower, a query transformer that compresses an image into nested visual tokens, and a decoder.

The contract: output i of the query transformer depends on query i alone, so the first m tokens of an image are the
same whether m or M of them were computed. Everything that is elastic about the model follows from that.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerateOutput
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .adaptive_budget import AdaptiveBudget, resolve_budget
from .adaptive_decoding import AdaptiveDecoding
from .configuration_compressed_llava import check_num_visual_tokens, plain_numbers
from .configuration_mqt_llava import MQTLlavaConfig
from .model_card import CardTexts
from .modeling_compressed_llava import (
    CompressedLlavaForConditionalGeneration,
    CompressedLlavaModel,
    CompressedLlavaPreTrainedModel,
)
from .placeholders import cut_visual_tokens, visual_tokens_per_image


def sine_cosine_positions(side: int, width: int) -> torch.Tensor:
    """
    The 2-D sine-cosine table of "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377): the first half
    of the channels encodes the column, the second the row, each as sin and cos of position / 10000^(4 i / width).

    Returns:
        Float32 `(side * side, width)`, row by row.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = one_axis.repeat(side, 1), one_axis.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=-1).float()


class MQTLlavaResampler(nn.Module):
    """
    The Matryoshka query transformer (arXiv 2405.19315), as in the released weights.

    Queries are learned vectors plus their position, keys are the positions of the patches alone, values the patches.
    So queries, keys and attention weights are the same for every image and are computed once per call.
    """

    def __init__(self, config: MQTLlavaConfig):
        super().__init__()
        width, self.num_heads = config.vision_config.hidden_size, config.resampler_num_attention_heads
        if self.num_heads < 1 or width % self.num_heads or width % 4:
            raise ValueError(
                f"The vision tower's hidden size is {width}, but must be divisible by 4 (sine and cosine of two axes) "
                f"and by `resampler_num_attention_heads`, which is {self.num_heads}."
            )
        self.query = nn.Parameter(torch.empty(config.max_visual_tokens, width))
        # Frozen, but kept in the checkpoint: the released table has been rounded to half precision.
        positions = sine_cosine_positions(math.isqrt(config.max_visual_tokens), width)
        self.register_buffer("query_positions", positions)
        self.ln_q = nn.LayerNorm(width, eps=1e-6)
        self.ln_k = nn.LayerNorm(width, eps=1e-6)
        self.ln_v = nn.LayerNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, config.text_config.hidden_size, bias=False)

    def patch_positions(self, num_patches: int) -> torch.Tensor:
        """The queries' raster, resized to the patch grid: `(num_patches, width)`."""
        # Not `math.isqrt`: when compiled, the number of patches is a symbol.
        side, grid = math.isqrt(len(self.query_positions)), int(num_patches**0.5)
        if grid * grid != num_patches:
            raise ValueError(
                f"The vision tower gives {num_patches} tokens per image, which is no square grid of patches. With "
                "`vision_feature_select_strategy='full'` nothing is dropped; with 'default' class tokens are."
            )
        if grid == side:
            return self.query_positions.to(self.query.dtype)
        raster = self.query_positions.float().T.reshape(1, -1, side, side)
        resized = nn.functional.interpolate(raster, size=(grid, grid), mode="bicubic", align_corners=False)
        return resized.flatten(2)[0].T.to(self.query.dtype)

    def attention_weights(self, num_patches: int, num_visual_tokens: int) -> torch.Tensor:
        """Where each query looks, whatever the image: `(heads, num_visual_tokens, num_patches)`."""

        def split_heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

        # Loading in another dtype leaves tables as they were saved.
        positions = self.query_positions[:num_visual_tokens].to(self.query.dtype)
        queries = self.q_proj(self.ln_q(self.query[:num_visual_tokens] + positions))
        keys = self.k_proj(self.ln_k(self.patch_positions(num_patches)))
        queries, keys = split_heads(queries), split_heads(keys)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)

    def forward(self, patches: torch.Tensor, num_visual_tokens: int | None = None) -> torch.Tensor:
        """
        Args:
            patches: `(images, patches, vision width)`.
            num_visual_tokens: How many of the M queries to compute, all by default.

        Returns:
            Visual tokens `(images, num_visual_tokens, decoder width)`.
        """
        num_images, num_patches, width = patches.shape
        weights = self.attention_weights(
            num_patches, len(self.query) if num_visual_tokens is None else num_visual_tokens
        )
        values = self.v_proj(self.ln_v(patches)).unflatten(-1, (self.num_heads, -1))
        # The weights are shared, so the images stand side by side in one product per head. torch's SDPA is about as
        # fast, and all this is 1% to 3% of the image path (benchmarks/resampler_attention.py): plain products stay.
        context = weights @ values.permute(2, 1, 0, 3).flatten(2)
        context = context.unflatten(-1, (num_images, -1)).permute(2, 1, 0, 3).flatten(2)
        return self.proj(self.out_proj(context))


class MQTLlavaPreTrainedModel(CompressedLlavaPreTrainedModel):
    config: MQTLlavaConfig
    _no_split_modules = ["MQTLlavaResampler"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
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
            ValueError: A number outside 1..M, not one per image, or other features than the configured ones.
        """
        max_visual_tokens, num_images = self.config.max_visual_tokens, len(pixel_values)
        if visual_token_counts is None:
            num_visual_tokens = [max_visual_tokens] * num_images
        else:
            num_visual_tokens = check_num_visual_tokens(
                visual_token_counts, max_visual_tokens, num_images, name="visual_token_counts"
            )

        image_outputs, (patches,) = self.encode_patches(pixel_values, **kwargs)
        visual_tokens = self.resampler(patches, num_visual_tokens=max([1, *num_visual_tokens]))
        return BaseModelOutputWithPooling(
            last_hidden_state=image_outputs.last_hidden_state,
            pooler_output=[tokens[:m] for tokens, m in zip(visual_tokens, num_visual_tokens)],
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
    ) -> tuple | LlavaModelOutputWithPast:
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
            A [`LlavaModelOutputWithPast`], or its entries as a tuple where `return_dict=False`.
        """
        image_outputs = self.check_inputs(input_ids, inputs_embeds, pixel_values, mm_encoder_outputs, kwargs)
        if pixel_values is not None or image_outputs is not None:
            placeholders = self.find_placeholders(input_ids, inputs_embeds)
            # While tracing, the placeholders cannot be counted: without `visual_token_counts` they are taken to be as
            # many as the features, which is checked where these are put in. Images that were encoded to fit, or that
            # `generate` cut into the chunks of a long prompt, are as many tokens as there are placeholders.
            fits = visual_token_counts is None and (
                torch.compiler.is_compiling()
                or image_outputs is not None
                and sum(len(tokens) for tokens in image_outputs.pooler_output) == placeholders.sum()
            )
            num_visual_tokens = None
            if not fits:
                num_images = len(pixel_values) if image_outputs is None else len(image_outputs.pooler_output)
                num_visual_tokens = visual_tokens_per_image(
                    placeholders, num_images, self.config.max_visual_tokens, visual_token_counts
                )
            if image_outputs is None:
                image_outputs = self.get_image_features(pixel_values, num_visual_tokens, return_dict=True)
            elif not fits:
                image_outputs = cut_visual_tokens(image_outputs, num_visual_tokens)
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=None if image_outputs is None else {"image": image_outputs},
            **kwargs,
        )


class MQTLlavaForConditionalGeneration(
    AdaptiveDecoding, MQTLlavaPreTrainedModel, CompressedLlavaForConditionalGeneration, GenerationMixin
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

    @property
    def max_visual_tokens(self) -> int:
        return self.config.max_visual_tokens

    def images_at(self, images: dict[str, torch.Tensor], num_visual_tokens: list[int]) -> dict[str, torch.Tensor]:
        return {**images, "visual_token_counts": torch.tensor(num_visual_tokens)}

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        num_visual_tokens: int | list[int] | str | AdaptiveBudget | None = None,
        **kwargs: Any,
    ) -> GenerateOutput | torch.LongTensor:
        """
        [`~GenerationMixin.generate`] at any number of visual tokens, whatever number the prompt was made with.

        The prompt's runs of `<image>` tokens are re-sized first, and its rows padded on the left, wherever their
        padding was. What is returned starts with the prompt as it was passed, so `output[:, input_ids.shape[1]:]` are
        the new tokens; `past_key_values`, attentions, hidden states, `max_length` and streamers refer to the re-sized
        prompt.

        A filled `past_key_values` and the whole conversation give the answer of a call without the cache. A
        [`VisualTokenCache`], which `generate` returns, keeps what the prompts share with it, at any number of visual
        tokens. A cache of another class must hold the beginning of these very prompts, at these numbers.

        With an adaptive budget, what comes out is what the level that was chosen gives. Going up a level goes on from
        the decoder's cache, so the first step's hidden states and attentions are those of what was left to read: the
        prompt's last token or more. With sliding windows, recurrent layers, rotary frequencies that follow the length,
        a static, quantized or offloaded cache, any passed cache but a `VisualTokenCache`, assisted decoding, or an
        image that ends its prompt, each level is computed from the start instead. A dict then also has
        `visual_token_level` (long `(batch,)`, 0 without an image), `visual_token_confidence` (float `(batch, levels)`,
        NaN where a level was not probed) and `visual_tokens_processed` (long `(batch,)`, by the decoder, at all
        levels).

        Args:
            inputs, generation_config, *args, **kwargs:
                As in [`~GenerationMixin.generate`], with the processor's output among them. Instead of `pixel_values`,
                `mm_encoder_outputs={"image": model.get_image_features(pixel_values)}` holds images that are encoded
                already; it is not changed and can be used again at another number of tokens.
            num_visual_tokens (`int`, `list[int]`, `"auto"` or [`AdaptiveBudget`], *optional*):
                Visual tokens of all images, or one number per image; or as many as each prompt needs, by the budget
                that is passed or, for `"auto"`, by the `adaptive_budget` of the generation config. Without it, the
                `num_visual_tokens` of the `generation_config` that is passed holds, then that of the model's, then
                the prompt's own number.

        Raises:
            TypeError, ValueError: `num_visual_tokens` is no integer in 1..M, or not one per image.
            ValueError: The prompt cannot be re-sized: it is given as `inputs_embeds`, its images are missing, or
                `past_key_values` holds something else, or anything where the budget is adaptive.
            ValueError: The model trains with gradient checkpointing, which goes without the cache.
        """
        # An assistant model gets a copy of the main model's configuration, and a prompt that is re-sized already.
        if generation_config is not None and generation_config.is_assistant:
            return super().generate(inputs, generation_config, *args, **kwargs)
        calibrated = None
        for config in (generation_config, self.generation_config):
            if num_visual_tokens is None:
                num_visual_tokens = getattr(config, "num_visual_tokens", None)
            calibrated = calibrated or getattr(config, "adaptive_budget", None)
        num_visual_tokens = plain_numbers(resolve_budget(num_visual_tokens, calibrated))
        return self.generate_fitted(num_visual_tokens, inputs, generation_config, args, kwargs)

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
    ) -> tuple | LlavaCausalLMOutputWithPast:
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
            A [`LlavaCausalLMOutputWithPast`], or its entries as a tuple where `return_dict=False`.

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
            return_dict=True,
            **kwargs,
        )
        return self.add_head(outputs, labels, logits_to_keep, **kwargs)


MQTLlavaModel.register_for_auto_class("AutoModel")
MQTLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["MQTLlavaForConditionalGeneration", "MQTLlavaModel", "MQTLlavaPreTrainedModel"]
