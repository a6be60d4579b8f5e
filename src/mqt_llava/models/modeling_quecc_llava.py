# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
QueCC-LLaVA: a vision tower, a compressor that knows the question, and a decoder.

The contract: an image is encoded for one question, and into a number of visual tokens that the model is built for. The
decoder reads the question twice: alone, without gradients, for the compressor, and behind the visual tokens.
"""

import math
from dataclasses import replace
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
from transformers.utils import TransformersKwargs, auto_docstring, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_quecc_llava import QueCCLlavaConfig, check_fixed_number
from .model_card import CardTexts
from .modeling_compressed_llava import (
    CompressedLlavaForConditionalGeneration,
    CompressedLlavaModel,
    CompressedLlavaPreTrainedModel,
)
from .placeholders import Prompt, ShownImage
from .prompt_fitting import PromptFitting


class QueCCMLP(nn.Sequential):
    def __init__(self, in_width: int, width: int):
        super().__init__(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, eps=1e-6))


class QueCCLlavaResampler(nn.Module):
    """
    The compressor of "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters" (arXiv 2411.03312, section
    4), as in the published code.

    The patches are cut into windows of k x k. What the decoder makes of the question is added to all of them; a
    convolution turns each window into one query, which attends to the patches of its own window alone, as several
    layers of the vision tower show them.
    """

    def __init__(self, config: QueCCLlavaConfig):
        super().__init__()
        width, decoder_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.num_heads, self.kernel_size = config.resampler_num_attention_heads, config.kernel_size
        if self.num_heads < 1 or width % self.num_heads:
            raise ValueError(
                f"The vision tower's hidden size is {width}, but must be divisible by "
                f"`resampler_num_attention_heads`, which is {self.num_heads}."
            )
        context_width = width * len(config.vision_context_layers)
        self.text_proj = nn.Linear(decoder_width, width)
        self.ln_text = nn.LayerNorm(width, eps=1e-6)
        self.q_mlp = QueCCMLP(width, width)
        self.k_mlp = QueCCMLP(context_width, width)
        self.v_mlp = QueCCMLP(context_width, width)
        self.q_downsample = nn.Conv2d(width, width, self.kernel_size, stride=self.kernel_size, groups=width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.proj = nn.Sequential(nn.Linear(width, decoder_width), nn.GELU(), nn.Linear(decoder_width, decoder_width))

    def windows(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches `(images, patches, width)`, row by row, as `(images, windows, patches of a window, width)`."""
        side = math.isqrt(patches.shape[1])
        kernel = self.kernel_size
        patches = patches.unflatten(1, (side // kernel, kernel, side // kernel, kernel))
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, patches: torch.Tensor, context: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        """
        Args:
            patches: `(images, patches, vision width)`, which the queries are made of.
            context: `(images, patches, context layers * vision width)`, for keys and values.
            question: `(images, decoder width)`, the decoder's last hidden state behind the question.

        Returns:
            Visual tokens `(images, windows, decoder width)`, window by window from the top left.

        Raises:
            ValueError: The patches are no square grid that the windows divide.
        """
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1] or side % self.kernel_size:
            raise ValueError(
                f"The vision tower gives {patches.shape[1]} tokens per image, which is no square grid that windows of "
                f"{self.kernel_size} x {self.kernel_size} divide (`kernel_size`)."
            )

        def split_heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

        question = self.ln_text(self.text_proj(question))
        grid = self.q_mlp(patches + question[:, None]).transpose(1, 2).unflatten(-1, (side, side))
        queries = self.q_downsample(grid).flatten(2).transpose(1, 2).contiguous()  # as vLLM's linear layers want it

        # (images, windows, heads, 1 query or the patches of a window, width of a head)
        queries = split_heads(self.q_proj(queries)[:, :, None])
        keys = split_heads(self.windows(self.k_proj(self.k_mlp(context))))
        values = split_heads(self.windows(self.v_proj(self.v_mlp(context))))
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        return self.proj(self.out_proj((weights @ values).flatten(2)))


class QueCCLlavaPreTrainedModel(CompressedLlavaPreTrainedModel):
    config: QueCCLlavaConfig
    _no_split_modules = ["QueCCLlavaResampler"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QueCCLlavaResampler):
            # As the original, which leaves it to torch.
            for layer in module.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    bound = 1 / math.sqrt(layer.weight[0].numel())
                    init.uniform_(layer.weight, -bound, bound)
                    init.uniform_(layer.bias, -bound, bound)


class QueCCLlavaModel(QueCCLlavaPreTrainedModel, CompressedLlavaModel):
    """Vision tower, question-aware compressor and decoder, without a language model head."""

    resampler_class = QueCCLlavaResampler

    @torch.no_grad()
    def encode_questions(
        self, query_input_ids: torch.LongTensor, query_attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What the decoder makes of questions: its last hidden state at the last token of each.

        Args:
            query_input_ids, query_attention_mask: `(questions, length)`, padded on either side.

        Returns:
            `(questions, hidden_size)`.

        Raises:
            ValueError: A question has no tokens, or the mask is of another shape.
        """
        if query_attention_mask is None:
            query_attention_mask = torch.ones_like(query_input_ids)
        if query_attention_mask.shape != query_input_ids.shape:
            raise ValueError(
                f"`query_attention_mask` is {tuple(query_attention_mask.shape)}, but must be of the shape of "
                f"`query_input_ids`, {tuple(query_input_ids.shape)}."
            )
        torch_compilable_check(
            (query_attention_mask.sum(-1) > 0).all(),
            "`query_attention_mask` masks every token of a question, but each needs one at least.",
        )
        positions = query_attention_mask.cumsum(-1)
        states = self.language_model(
            input_ids=query_input_ids,
            attention_mask=query_attention_mask,
            position_ids=(positions - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        last = (query_attention_mask * torch.arange(1, 1 + positions.shape[1], device=positions.device)).argmax(-1)
        return states[torch.arange(len(states), device=states.device), last.to(states.device)]

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        query_input_ids: torch.LongTensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """
        Encodes images into visual tokens, each for a question.

        Args:
            pixel_values: `(images, channels, height, width)`.
            query_input_ids, query_attention_mask: The question of each image, `(images, length)`, padded on either
                side, from the processor.

        Returns:
            The vision tower's output; its `pooler_output` is a list with one tensor `(visual tokens, hidden_size)` per
            image. Hidden states that are asked for have the whole tower's indices, with `None` for layers that are not
            built.

        Raises:
            ValueError: There is not one question for each image, or other features are asked for than the configured
                ones.
        """
        if query_input_ids is None or len(query_input_ids) != len(pixel_values):
            given = "is missing" if query_input_ids is None else f"has {len(query_input_ids)} rows"
            raise ValueError(
                f"`query_input_ids` {given} for {len(pixel_values)} images, but must hold the question of each image: "
                "pass what the processor returns. (A pipeline's batches lose rows where a prompt asks several "
                "questions; without `batch_size` it works.)"
            )
        image_outputs, (patches, *context) = self.encode_patches(pixel_values, **kwargs)
        question = self.encode_questions(query_input_ids, query_attention_mask)
        visual_tokens = self.resampler(patches, torch.cat(context, dim=-1), question.to(patches))
        return BaseModelOutputWithPooling(
            last_hidden_state=image_outputs.last_hidden_state,
            pooler_output=list(visual_tokens),
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
        query_input_ids: torch.LongTensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaModelOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(num_images, num_channels, image_size, image_size)`, *optional*):
            The images of all prompts, one after the other, from the processor.
        query_input_ids (`torch.LongTensor` of shape `(num_images, query_length)`, *optional*):
            The question that each image is encoded for, from the processor. Needed along with `pixel_values`.
        query_attention_mask (`torch.Tensor` of shape `(num_images, query_length)`, *optional*):
            Which of `query_input_ids` are tokens (1) and which are padding (0), on either side. By default all are
            tokens.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": output of get_image_features}` in place of `pixel_values`: images that are already encoded.

        Returns:
            A [`LlavaModelOutputWithPast`], or its entries as a tuple where `return_dict=False`.
        """
        image_outputs = self.check_inputs(input_ids, inputs_embeds, pixel_values, mm_encoder_outputs, kwargs)
        if pixel_values is not None:
            image_outputs = self.get_image_features(
                pixel_values, query_input_ids, query_attention_mask, return_dict=True
            )
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=None if image_outputs is None else {"image": image_outputs},
            **kwargs,
        )


class QueCCLlavaForConditionalGeneration(
    PromptFitting, QueCCLlavaPreTrainedModel, CompressedLlavaForConditionalGeneration, GenerationMixin
):
    """QueCC-LLaVA with its language model head: answers questions about images that were encoded for them."""

    model_class = QueCCLlavaModel
    image_inputs = ("pixel_values", "query_input_ids", "query_attention_mask")
    card_texts = CardTexts(
        tag="quecc-llava",
        number_name="num_visual_tokens",
        introduction=(
            "QueCC-LLaVA answers questions about images with few visual tokens, here {number} per image, made for the "
            "question that is\nasked. See\n"
            "[Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters](https://arxiv.org/abs/2411.03312)."
        ),
        prompt_arguments="",
    )

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        query_input_ids: torch.LongTensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """See [`QueCCLlavaModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, query_input_ids, query_attention_mask, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        num_visual_tokens: int | None = None,
        **kwargs: Any,
    ) -> GenerateOutput | torch.LongTensor:
        """
        As [`~GenerationMixin.generate`], and conversations as with [`MQTLlavaForConditionalGeneration`]: a filled
        `past_key_values` and the whole conversation give the answer of a call without the cache. Rows may be padded
        on either side.

        Raises:
            ValueError: `num_visual_tokens` is another number than the model's.
        """
        for config in (generation_config, self.generation_config):
            if num_visual_tokens is None:
                num_visual_tokens = getattr(config, "num_visual_tokens", None)
        check_fixed_number(num_visual_tokens, self.config.num_visual_tokens)
        # An assistant model gets a copy of the main model's configuration, and images that it does not have yet.
        if generation_config is not None and generation_config.is_assistant:
            return super().generate(inputs, generation_config, *args, **kwargs)
        return self.generate_fitted(None, inputs, generation_config, args, kwargs)

    @property
    def max_visual_tokens(self) -> int:
        return self.config.num_visual_tokens

    def images_at(self, images: dict[str, torch.Tensor], num_visual_tokens: list[int]) -> dict[str, torch.Tensor]:
        return images

    def _read_prompt(self, ids: torch.Tensor | None, config: GenerationConfig, kwargs: dict) -> Prompt:
        self._share_questions(ids, kwargs)
        prompt = super()._read_prompt(ids, config, kwargs)
        return replace(prompt, num_visual_tokens=[self.config.num_visual_tokens] * len(prompt.images) or None)

    def _share_questions(self, prompt: torch.LongTensor | None, kwargs: dict) -> None:
        """
        Makes one question for each prompt one for each of its images: a pipeline's batches keep the first question of
        each prompt. Where it had others, the processor has marked it, and it stays as it is, to be refused.
        """
        questions, images = kwargs.get("query_input_ids"), kwargs.get("pixel_values")
        if prompt is None or questions is None or images is None:
            return
        if len(questions) != len(prompt) or len(questions) == len(images):
            return
        num_images = self.model.find_placeholders(prompt, None).sum(-1) // self.config.num_visual_tokens
        if num_images.sum() != len(images) or (questions == self.config.image_token_id).any():
            return
        for name in ("query_input_ids", "query_attention_mask"):
            if kwargs.get(name) is not None:
                kwargs[name] = kwargs[name].repeat_interleave(num_images.to(kwargs[name].device), dim=0)

    def _shown_images(self, image_outputs: BaseModelOutputWithPooling | None, kwargs: dict) -> list[ShownImage]:
        images, questions = super()._shown_images(image_outputs, kwargs), kwargs.get("query_input_ids")
        if questions is None or image_outputs is not None or len(questions) != len(images):
            return images  # `get_image_features` says what is missing
        mask = kwargs.get("query_attention_mask")
        mask = torch.ones_like(questions) if mask is None else mask
        return [replace(image, question=row[seen.ne(0)]) for image, row, seen in zip(images, questions, mask)]

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
        query_input_ids: torch.LongTensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlavaCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.Tensor` of shape `(num_images, num_channels, image_size, image_size)`, *optional*):
            The images of all prompts, one after the other, from the processor.
        query_input_ids (`torch.LongTensor` of shape `(num_images, query_length)`, *optional*):
            The question that each image is encoded for, from the processor. Needed along with `pixel_values`.
        query_attention_mask (`torch.Tensor` of shape `(num_images, query_length)`, *optional*):
            Which of `query_input_ids` are tokens (1) and which are padding (0), on either side. By default all are
            tokens.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": output of get_image_features}` in place of `pixel_values`: images that are already encoded.

        Returns:
            A [`LlavaCausalLMOutputWithPast`], or its entries as a tuple where `return_dict=False`.

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoProcessor
        >>> from mqt_llava import QueCCLlavaForConditionalGeneration

        >>> model = QueCCLlavaForConditionalGeneration.from_pretrained("quecc-llava-7b")
        >>> processor = AutoProcessor.from_pretrained("quecc-llava-7b")

        >>> prompt = "USER: <image>\nIs there any footwear? ASSISTANT:"
        >>> inputs = processor(images=Image.open("mosaic.png"), text=prompt, return_tensors="pt")
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
            query_input_ids=query_input_ids,
            query_attention_mask=query_attention_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        return self.add_head(outputs, labels, logits_to_keep, **kwargs)


QueCCLlavaModel.register_for_auto_class("AutoModel")
QueCCLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["QueCCLlavaForConditionalGeneration", "QueCCLlavaModel", "QueCCLlavaPreTrainedModel"]
