# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
MQT-LLaVA: a vision tower, a query transformer that compresses an image into nested visual tokens, and a decoder.

The contract: output i of the query transformer depends on query i alone, so the first m tokens of an image are the
same whether m or M of them were computed. Everything that is elastic about the model follows from that.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .configuration_mqt_llava import MQTLlavaConfig, check_num_visual_tokens
from .generation_mqt_llava import MQTLlavaGenerationMixin, cut_visual_tokens, encoded_images
from .prompt_mqt_llava import visual_tokens_per_image
from .resampler_mqt_llava import MQTLlavaResampler, sine_cosine_positions


NEVER = -1e4  # a logit whose exponential is zero in every dtype, and that every dtype can hold


@dataclass
class MQTLlavaModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(visual tokens of all images, hidden_size)`, *optional*):
        The visual tokens as they went into the decoder, one image after the other.
    """

    image_hidden_states: torch.Tensor | None = None


@dataclass
class MQTLlavaCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
        Language modeling loss (for next-token prediction).
    logits (`torch.Tensor` of shape `(batch_size, sequence_length, config.text_config.vocab_size)`):
        Scores of the next token.
    past_key_values (`Cache`, *optional*):
        Keys and values of the decoder.
    image_hidden_states (`torch.Tensor` of shape `(visual tokens of all images, hidden_size)`, *optional*):
        The visual tokens as they went into the decoder, one image after the other.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None
    image_hidden_states: torch.Tensor | None = None


class MQTLlavaPreTrainedModel(PreTrainedModel):
    config: MQTLlavaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MQTLlavaResampler"]
    _skip_keys_device_placement = ["past_key_values"]

    _supports_flash_attn = True
    _supports_sdpa = True

    _can_compile_fullgraph = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As [`~PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: The checkpoint holds tensors of a query transformer that is not this one.
        """
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if unknown := sorted(key for key in loading_info["unexpected_keys"] if "resampler." in key):
            raise ValueError(
                f"{pretrained_model_name_or_path} has tensors that this query transformer does not know: "
                f"{', '.join(unknown)}."
            )
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def is_custom_code(cls) -> bool:
        # Custom code is taken to initialise in place, so modules without parameters of their own would be passed over,
        # and with them the vision tower's own initialisation. This code goes by `transformers.initialization`.
        return False

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


class MQTLlavaModel(MQTLlavaPreTrainedModel):
    """Vision tower, query transformer and decoder, without a language model head."""

    def __init__(self, config: MQTLlavaConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self._drop_unused_vision_layers()
        self.resampler = MQTLlavaResampler(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def _drop_unused_vision_layers(self):
        """Keeps the layers of the vision tower up to the one whose output is used."""
        vision_config, layer = self.config.vision_config, self.config.vision_feature_layer
        num_layers = vision_config.num_hidden_layers
        if not -num_layers <= layer <= num_layers or layer == 0:
            raise ValueError(
                f"`vision_feature_layer` is {layer}, but the vision tower has {num_layers} layers: allowed are "
                f"1..{num_layers} and -{num_layers}..-1."
            )
        self.num_vision_layers = layer if layer > 0 else num_layers + 1 + layer
        if self.num_vision_layers == num_layers:
            return
        for module in self.vision_tower.modules():
            if isinstance(module, nn.ModuleList) and len(module) == num_layers:
                del module[self.num_vision_layers :]

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

        Raises:
            ValueError: A count outside 1..M, or not one count per image.
        """
        max_visual_tokens, num_images = self.config.max_visual_tokens, len(pixel_values)
        if visual_token_counts is None:
            counts = [max_visual_tokens] * num_images
        else:
            counts = check_num_visual_tokens(
                visual_token_counts, max_visual_tokens, num_images, name="visual_token_counts"
            )

        # Releases count either blocks or states in such a list: under both, these two indices end with the last
        # block's output, and hold on to one state before it at most, until this method returns.
        all_states_asked = kwargs.pop("output_hidden_states", None) or self.config.output_hidden_states
        image_outputs = self.vision_tower(
            pixel_values.to(self.vision_tower.dtype),
            output_hidden_states=all_states_asked or [self.num_vision_layers - 1, self.num_vision_layers],
            return_dict=True,
            **kwargs,
        )
        patches = image_outputs.hidden_states[-1]
        if self.config.vision_feature_select_strategy == "default":
            # Class and register tokens stand in front of the largest square that fits.
            patches = patches[:, patches.shape[1] - math.isqrt(patches.shape[1]) ** 2 :]

        visual_tokens = self.resampler(patches, num_queries=max(counts, default=max_visual_tokens))
        return BaseModelOutputWithPooling(
            last_hidden_state=image_outputs.last_hidden_state,
            pooler_output=[tokens[:count] for tokens, count in zip(visual_tokens, counts)],
            hidden_states=image_outputs.hidden_states if all_states_asked else None,
            attentions=image_outputs.get("attentions"),
        )

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.BoolTensor:
        """Where visual tokens go, `(batch, length)`."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    @can_return_tuple
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
    ) -> tuple | MQTLlavaModelOutputWithPast:
        r"""
        visual_token_counts (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            How many of the placeholders belong to each image, from the processor. By default the images share them
            equally.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": output of get_image_features}` in place of `pixel_values`: images that are already encoded, with
            at least as many visual tokens as the prompt has placeholders for.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        image_outputs = encoded_images(mm_encoder_outputs)
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")

        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        image_features = None
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
            image_features = torch.cat(list(image_outputs.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)
            placeholder_mask = placeholder_mask.unsqueeze(-1).to(inputs_embeds.device)
            torch_compilable_check(
                placeholder_mask.sum() * inputs_embeds.shape[-1] == image_features.numel(),
                "Image features and image tokens do not match",
            )
            inputs_embeds = inputs_embeds.masked_scatter(placeholder_mask, image_features)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return MQTLlavaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )


class MQTLlavaForConditionalGeneration(MQTLlavaGenerationMixin, MQTLlavaPreTrainedModel, GenerationMixin):
    """MQT-LLaVA with its language model head: answers questions about images at any number of visual tokens."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MQTLlavaConfig):
        super().__init__(config)
        if not 0 <= config.image_token_id < config.text_config.vocab_size:
            raise ValueError(
                f"`image_token_id` is {config.image_token_id}, but must be a row of the decoder's embeddings, in "
                f"0..{config.text_config.vocab_size - 1} (`text_config.vocab_size` - 1)."
            )
        self.model = MQTLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # The decoder's embeddings go by the decoder's own name for them (`embed_tokens`, `wte`, ...).
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        # A generation config that is marked so loses the `num_visual_tokens` that is set on it when it is reloaded.
        self.generation_config._from_model_config = False
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | PreTrainedModel,
        text: str | PreTrainedModel,
        *,
        image_token_id: int | None = None,
        dtype: str | torch.dtype | None = None,
        **config_kwargs,
    ) -> "MQTLlavaForConditionalGeneration":
        """
        Puts a new query transformer between a pretrained vision tower and a pretrained decoder, ready to be trained.

        Args:
            vision: A vision tower, or the folder or Hub id to load one from; of a model with several parts (CLIP,
                SigLIP) the vision part is taken.
            text: A causal language model, or the folder or Hub id to load one from.
            image_token_id: The id of `<image>` in the tokenizer. By default the next one after the decoder's
                vocabulary. The embeddings grow until they hold it.
            dtype: What to load both in, when they are folders or Hub ids. The vision tower takes on the decoder's.
            config_kwargs: Further arguments of [`MQTLlavaConfig`], such as `max_visual_tokens` and
                `vision_feature_layer`.

        Returns:
            The model, in evaluation mode. The two parts are moved into it, not copied.
        """
        if not isinstance(vision, PreTrainedModel):
            vision_config = AutoConfig.from_pretrained(vision)
            vision_config = getattr(vision_config, "vision_config", vision_config)
            vision = AutoModel.from_pretrained(vision, config=vision_config, dtype=dtype)
        if not isinstance(text, PreTrainedModel):
            text = AutoModelForCausalLM.from_pretrained(text, dtype=dtype)
        if "vision_config" in vision.config.sub_configs:  # a whole CLIP or SigLIP
            vision = vision.vision_model
        vision = vision.to(device=text.device, dtype=text.dtype)
        lm_head = text.get_output_embeddings()
        if lm_head is None or lm_head.bias is not None:
            raise ValueError(f"`text` is a {type(text).__name__}, but must be a causal model whose head has no bias.")

        image_token_id = text.config.vocab_size if image_token_id is None else image_token_id
        if image_token_id >= text.config.vocab_size:
            text.resize_token_embeddings(image_token_id + 1)

        config = MQTLlavaConfig(
            vision_config=vision.config, text_config=text.config, image_token_id=image_token_id, **config_kwargs
        )
        with torch.device("meta"):
            model = cls(config)
        model.model.vision_tower, model.model.language_model = vision, text.base_model
        model.model._drop_unused_vision_layers()
        model.lm_head = text.get_output_embeddings()
        model.model.resampler.to_empty(device=text.device).to(text.dtype)
        for module in model.model.resampler.modules():
            model._init_weights(module)
        model.tie_weights()
        model.generation_config = copy.deepcopy(text.generation_config)
        model.generation_config._from_model_config = False
        return model.eval()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        visual_token_counts: torch.Tensor | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """See [`MQTLlavaModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, visual_token_counts, **kwargs)

    @can_return_tuple
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
    ) -> tuple | MQTLlavaCausalLMOutputWithPast:
        r"""
        visual_token_counts (`torch.LongTensor` of shape `(num_images,)`, *optional*):
            How many of the placeholders belong to each image, from the processor. By default the images share them
            equally.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": output of get_image_features}` in place of `pixel_values`: images that are already encoded, with
            at least as many visual tokens as the prompt has placeholders for.

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

        # Only the logits that are asked for are computed.
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        # The placeholder is never predicted. Losses and samples are those of the decoder's own vocabulary, and finite
        # where a loss sums over all logits.
        image_token = torch.full((1,), self.config.image_token_id, device=logits.device)
        logits = logits.index_fill(-1, image_token, NEVER)

        loss = None
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.image_token_id, -100)
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return MQTLlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


MQTLlavaModel.register_for_auto_class("AutoModel")
MQTLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["MQTLlavaForConditionalGeneration", "MQTLlavaModel", "MQTLlavaPreTrainedModel"]
