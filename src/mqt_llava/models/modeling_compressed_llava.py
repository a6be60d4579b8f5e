# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
A LLaVA with a compressor in the projector's place: a resampler that turns an image into few visual tokens.

What differs from transformers' LLaVA, whatever the compressor. A subclass of the model brings its `resampler_class`,
and says in `get_image_features` what that reads.
"""

import copy
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)
from transformers.utils import ModelOutput

from .configuration_compressed_llava import CompressedLlavaConfig, count_patches
from .model_card import CardTexts, fill_empty_card
from .placeholders import encoded_images


Model = TypeVar("Model", bound="CompressedLlavaPreTrainedModel")
ModelWithHead = TypeVar("ModelWithHead", bound="CompressedLlavaForConditionalGeneration")

NEVER = -1e4  # a logit whose exponential is zero in every dtype, and that every dtype can hold


def refuse_other_features(config: CompressedLlavaConfig, kwargs: dict) -> None:
    """
    Takes arguments of LLaVA's out of `kwargs` that choose image features there. Here the configuration chooses them:
    the vision tower is built and the compressor trained for those.

    Raises:
        ValueError: They choose others than the configured ones.
    """
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        value, configured = kwargs.pop(name, None), getattr(config, name)
        if value is not None and value != configured:
            raise ValueError(f"`{name}` is {value!r}, but the model is built for {configured!r}. Leave it out.")
    if kwargs.pop("image_sizes", None) is not None:
        raise ValueError("`image_sizes` is given, but every image is of the vision tower's own size. Leave it out.")


class CompressedLlavaPreTrainedModel(LlavaPreTrainedModel):
    config: CompressedLlavaConfig

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Model:
        """
        As [`~PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: The checkpoint holds tensors of a compressor that is not this one.
        """
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if unknown := sorted(key for key in loading_info["unexpected_keys"] if "resampler." in key):
            raise ValueError(
                f"{pretrained_model_name_or_path} has tensors that this compressor does not know: "
                f"{', '.join(unknown)}."
            )
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def is_custom_code(cls) -> bool:
        # Custom code is taken to initialise in place, so modules without parameters of their own would be passed over,
        # and with them the vision tower's own initialisation. This code goes by `transformers.initialization`.
        return False


class CompressedLlavaModel(CompressedLlavaPreTrainedModel, LlavaModel):
    """A LLaVA whose projector is a compressor: vision tower, compressor and decoder, without a language model head."""

    resampler_class: type[nn.Module]

    def __init__(self, config: CompressedLlavaConfig):
        super(LlavaModel, self).__init__(config)  # not LLaVA's own, which builds its projector
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self._drop_unused_vision_layers()
        self.resampler = self.resampler_class(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @property
    def multi_modal_projector(self) -> nn.Module:
        """The compressor by LLaVA's name, by which transformers' exporters find it."""
        return self.resampler

    def _drop_unused_vision_layers(self) -> None:
        """Keeps the layers of the vision tower up to the last one whose output is used."""
        num_layers = self.config.vision_config.num_hidden_layers
        self.used_vision_layers = []
        for layer in self.config.used_vision_layers:
            if not -num_layers <= layer <= num_layers or layer == 0:
                is_first = layer == self.config.vision_feature_layer
                name = "vision_feature_layer" if is_first else "vision_context_layers"
                raise ValueError(
                    f"`{name}` is {getattr(self.config, name)}, but the vision tower has {num_layers} layers: allowed "
                    f"are 1..{num_layers} and -{num_layers}..-1."
                )
            self.used_vision_layers.append(layer if layer > 0 else num_layers + 1 + layer)
        num_used = max(self.used_vision_layers)
        if num_used == num_layers:
            return
        for module in self.vision_tower.modules():
            if isinstance(module, nn.ModuleList) and len(module) == num_layers:
                del module[num_used:]

    def encode_patches(self, pixel_values: torch.Tensor, **kwargs: Any) -> tuple[ModelOutput, list[torch.Tensor]]:
        """
        Runs the vision tower.

        Args:
            pixel_values: `(images, channels, height, width)`.

        Returns:
            Its output, and the patches `(images, patches, width)` of each layer in `config.used_vision_layers`. Where
            hidden states are asked for, they are those of the whole tower by their indices, and `None` for the layers
            that are not built.

        Raises:
            ValueError: Other features are asked for than the configured ones.
        """
        refuse_other_features(self.config, kwargs)
        num_layers = max(self.used_vision_layers)
        # Releases count either blocks or states in such a list, so both indices of a layer are asked for; counted from
        # the end, they agree. Of a layer one state at most is held besides, until this method returns.
        all_states_asked = kwargs.pop("output_hidden_states", None) or self.config.output_hidden_states
        image_outputs = self.vision_tower(
            pixel_values.to(self.vision_tower.dtype),
            output_hidden_states=bool(all_states_asked)
            or sorted({index for layer in self.used_vision_layers for index in (layer - 1, layer)}),
            return_dict=True,
            **kwargs,
        )
        patches = [image_outputs.hidden_states[layer - num_layers - 1] for layer in self.used_vision_layers]
        if self.config.vision_feature_select_strategy == "default":
            # Class and register tokens stand in front of the largest square that fits. Not by `math.isqrt`: when
            # compiled, the number of patches is a symbol.
            first = patches[0].shape[1] - int(patches[0].shape[1] ** 0.5) ** 2
            patches = [states[:, first:] for states in patches]
        num_missing = self.config.vision_config.num_hidden_layers - num_layers
        image_outputs["hidden_states"] = (
            (*image_outputs.hidden_states, *[None] * num_missing) if all_states_asked else None
        )
        return image_outputs, patches

    def find_placeholders(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.BoolTensor:
        """Where visual tokens go, `(batch, length)`."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        image_features: torch.Tensor,
    ) -> torch.BoolTensor:
        """
        As LLaVA's, `(batch, length, 1)`, with an error that counts tokens.

        Raises:
            ValueError: There are not as many places as visual tokens.
        """
        placeholders = self.find_placeholders(input_ids, inputs_embeds)
        num_places, error = placeholders.sum(), "Image features and image tokens do not match"
        if torch.compiler.is_compiling():
            # On the device: to read the number here would split the graph, and one part would depend on m.
            torch._assert_async(num_places == len(image_features), error)
        elif num_places != len(image_features):
            raise ValueError(
                f"{error}: {int(num_places)} image tokens in the prompts, {len(image_features)} visual tokens of "
                "`pixel_values` or `mm_encoder_outputs`."
            )
        return placeholders.unsqueeze(-1).to(image_features.device)

    def check_inputs(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, ModelOutput] | None,
        kwargs: dict,
    ) -> ModelOutput | None:
        """
        What LLaVA's forward checks, before anything is computed; takes arguments that choose features out of `kwargs`.

        Returns:
            The encoded images that `mm_encoder_outputs` holds, if any.

        Raises:
            TypeError, ValueError: Prompt or images are given twice or in another form, or other features are asked for
                than the configured ones.
        """
        refuse_other_features(self.config, kwargs)
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        image_outputs = encoded_images(mm_encoder_outputs)
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        return image_outputs


class CompressedLlavaForConditionalGeneration(CompressedLlavaPreTrainedModel, LlavaForConditionalGeneration):
    """A [`CompressedLlavaModel`] with a language model head."""

    model_class: type[CompressedLlavaModel]
    card_texts: CardTexts
    is_made_of_llava = False  # and not loaded since; `config.name_or_path` is the LLaVA's then

    _tp_plan = {"lm_head": "colwise_gather_output"}  # which LLaVA's has since 5.20

    def __init__(self, config: CompressedLlavaConfig):
        super(LlavaForConditionalGeneration, self).__init__(config)  # not LLaVA's own, which builds its model
        if not 0 <= config.image_token_id < config.text_config.vocab_size:
            raise ValueError(
                f"`image_token_id` is {config.image_token_id}, but must be a row of the decoder's embeddings, in "
                f"0..{config.text_config.vocab_size - 1} (`text_config.vocab_size` - 1)."
            )
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # The decoder's embeddings go by the decoder's own name for them (`embed_tokens`, `wte`, ...).
        embeddings = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        # A generation config that is marked so loses what is set on it of ours when it is reloaded.
        self.generation_config._from_model_config = False
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls: type[ModelWithHead],
        vision: str | PreTrainedModel,
        text: str | PreTrainedModel,
        *,
        image_token_id: int | None = None,
        dtype: str | torch.dtype | None = None,
        **config_kwargs: Any,
    ) -> ModelWithHead:
        """
        Puts a new compressor between a pretrained vision tower and a pretrained decoder, ready to be trained.

        Args:
            vision: A vision tower, or the folder or Hub id to load one from; of a model with several parts (CLIP,
                SigLIP) the vision part is taken.
            text: A causal language model, or the folder or Hub id to load one from.
            image_token_id: The id of `<image>` in the tokenizer. By default the next one after the decoder's
                vocabulary. The embeddings grow until they hold it.
            dtype: What to load both in, when they are folders or Hub ids. The vision tower takes on the decoder's.
            config_kwargs: Further arguments of the configuration, such as `vision_feature_layer`.

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
        return cls._from_parts(
            vision,
            text.base_model,
            text.get_output_embeddings(),
            text.generation_config,
            image_token_id=image_token_id,
            **config_kwargs,
        )

    @classmethod
    def from_llava(
        cls: type[ModelWithHead],
        llava: str | os.PathLike | LlavaForConditionalGeneration,
        *,
        dtype: str | torch.dtype | None = None,
        **config_kwargs: Any,
    ) -> ModelWithHead:
        """
        Puts a new compressor in the place of a LLaVA's projector, ready to be trained.

        No tensor is copied. Decoder and head are the LLaVA's own modules; the vision tower is a new object over the
        LLaVA's tensors, without the layers that are not used. So the LLaVA works on as it did, with its projector, and
        what trains, moves or resizes the parts of one model does so to the other's: move the LLaVA before.

        Args:
            llava: A LLaVA, or the folder or Hub id to load one from. One of transformers' own class: an image is one
                square grid of patches, of one layer of the vision tower.
            dtype: What to load it in, when it is a folder or Hub id.
            config_kwargs: Further arguments of the configuration, such as `max_visual_tokens` or `kernel_size`. Those
                that a LLaVA has too (`vision_feature_layer`, `vision_feature_select_strategy`) are the LLaVA's own by
                default.

        Returns:
            The model, in evaluation mode. The compressor has the dtype and the device of the vision tower.

        Raises:
            ValueError: It is no such LLaVA, its head has a bias, or an image would get more visual tokens than it has
                patches.
        """
        is_name = isinstance(llava, (str, os.PathLike))
        kind = AutoConfig.from_pretrained(llava).model_type if is_name else type(llava).__name__
        if kind not in ("llava", "LlavaForConditionalGeneration"):
            raise ValueError(
                f"`llava` is a {kind}, but must be a LlavaForConditionalGeneration, or the folder or Hub id of one. "
                "Models that cut images into tiles (LLaVA-NeXT, LLaVA-OneVision) or whose projector reads several "
                "layers (VipLLaVA) are none."
            )
        if is_name:
            llava = LlavaForConditionalGeneration.from_pretrained(llava, dtype=dtype)
        if llava.lm_head.bias is not None:
            raise ValueError("The head of `llava` has a bias, but must have none.")

        settings = {
            name: config_kwargs.pop(name, getattr(llava.config, name))
            for name in ("vision_feature_layer", "vision_feature_select_strategy")
        }
        if isinstance(layers := settings["vision_feature_layer"], (list, tuple)):
            if len(layers) != 1:
                raise ValueError(
                    f"`vision_feature_layer` of the LLaVA is {layers}, but a compressor takes its patches of one "
                    "layer: pass that one, such as -2."
                )
            (settings["vision_feature_layer"],) = layers
        num_patches = count_patches(llava.config.vision_config, settings["vision_feature_select_strategy"])

        # Hooks and layers of its own, the same tensors.
        tower = llava.model.vision_tower
        tower = copy.deepcopy(tower, {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())})
        model = cls._from_parts(
            tower,
            llava.model.language_model,
            llava.lm_head,
            llava.generation_config,
            image_token_id=llava.config.image_token_id,
            tie_word_embeddings=llava.config.tie_word_embeddings,
            name_or_path=llava.config.name_or_path,
            **settings,
            **config_kwargs,
        )
        if model.max_visual_tokens > num_patches:
            raise ValueError(
                f"An image would get {model.max_visual_tokens} visual tokens, but the vision tower gives "
                f"{num_patches} patches, which is the most."
            )
        model.is_made_of_llava = True
        return model

    @classmethod
    def _from_parts(
        cls: type[ModelWithHead],
        vision_tower: PreTrainedModel,
        language_model: PreTrainedModel,
        lm_head: nn.Module,
        generation_config: GenerationConfig,
        **config_kwargs: Any,
    ) -> ModelWithHead:
        """A model of these parts and a new compressor. The vision tower loses the layers that are not used."""
        # Copies, since a configuration that is built, and a model that is, write to those of their parts.
        config = cls.config_class(
            vision_config=copy.deepcopy(vision_tower.config),
            text_config=copy.deepcopy(language_model.config),
            **config_kwargs,
        )
        with torch.device("meta"):
            model = cls(config)
        config.vision_config, config.text_config = vision_tower.config, language_model.config
        config._attn_implementation = {"": language_model.config._attn_implementation}
        model.model.vision_tower, model.model.language_model = vision_tower, language_model
        model.model._drop_unused_vision_layers()
        model.lm_head = lm_head
        model.model.resampler.to_empty(device=vision_tower.device).to(vision_tower.dtype)
        for module in model.model.resampler.modules():
            model._init_weights(module)
        model.tie_weights()
        model.generation_config = copy.deepcopy(generation_config)
        model.generation_config._from_model_config = False
        return model.eval()

    def check_cache_is_used(self, generation_config: GenerationConfig) -> None:
        """
        Raises:
            ValueError: `generate` relies on a cache, but in training the decoder's gradient checkpointing drops it.
        """
        decoder = self.model.language_model
        is_checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.modules())
        if self.training and is_checkpointed and generation_config.use_cache:
            raise ValueError(
                "The model is in training mode with gradient checkpointing (`gradient_checkpointing`). That drops the "
                "decoder's cache, so `generate` would see the last token alone. Call `model.eval()` or "
                "`model.gradient_checkpointing_disable()` first, or pass `use_cache=False`."
            )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """
        As [`~PreTrainedModel.save_pretrained`]; a README.md that is there stays, also when it is pushed.

        Raises:
            ValueError: Parts are a LLaVA's that was quantised, which could not be loaded again.
        """
        is_quantized = not all(parameter.is_floating_point() for parameter in self.parameters())
        if is_quantized and getattr(self, "hf_quantizer", None) is None:
            raise ValueError(
                "The model shares quantised parts with the LLaVA that it was made of, so it cannot be saved as a "
                "whole. Save what was trained, and make the model of a LLaVA that is not quantised."
            )
        card = Path(save_directory) / "README.md"
        written = card.read_bytes() if card.is_file() else None
        super().save_pretrained(save_directory, *args, **kwargs)
        if written is not None:
            card.write_bytes(written)

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # Whatever pushes comes here, with the card that the repository has, or transformers' empty one.
        fill_empty_card(Path(working_dir) / "README.md", self, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def add_head(
        self,
        outputs: LlavaModelOutputWithPast,
        labels: torch.LongTensor | None,
        logits_to_keep: int | torch.Tensor,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Logits, and a loss where there are labels, of what the model returned."""
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
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )
