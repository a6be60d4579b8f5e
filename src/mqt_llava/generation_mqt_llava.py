# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""`generate` at any number of visual tokens, with images encoded once and conversations continued from a cache."""

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .adaptive_mqt_llava import AdaptiveBudget, read_budget
from .cache_compressed_llava import CachedPrompts, VisualTokenCache
from .climb_mqt_llava import ProbedPrompt, can_reuse, climb, merge_states, split_prompts
from .fitting_compressed_llava import FittedPrompt, Prompt, PromptFitting, cut_visual_tokens
from .modeling_compressed_llava import encoded_images
from .numbers_compressed_llava import plain_numbers
from .prompt_compressed_llava import (
    check_images_are_passed,
    check_mask,
    images_per_row,
    num_copies,
)


class MQTLlavaGenerationMixin(PromptFitting):
    """`generate` with a number of visual tokens of its own."""

    @property
    def most_visual_tokens(self) -> int:
        return self.config.max_visual_tokens

    def images_at(self, images: dict[str, torch.Tensor], counts: list[int]) -> dict[str, torch.Tensor]:
        return {**images, "visual_token_counts": torch.tensor(counts)}

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        num_visual_tokens: int | list[int] | str | AdaptiveBudget | None = None,
        **kwargs,
    ):
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
        num_visual_tokens = plain_numbers(read_budget(num_visual_tokens, calibrated))
        return self.generate_fitted(num_visual_tokens, inputs, generation_config, args, kwargs)

    def _fit_prompt(self, prompt: Prompt, config: GenerationConfig, num_visual_tokens, kwargs: dict) -> FittedPrompt:
        if isinstance(num_visual_tokens, AdaptiveBudget):
            return self._climb(prompt, config, num_visual_tokens, kwargs)
        return super()._fit_prompt(prompt, config, num_visual_tokens, kwargs)

    def _climb(self, prompt: Prompt, config, budget: AdaptiveBudget, kwargs: dict) -> FittedPrompt:
        """Finds the level of visual tokens that each prompt needs, and fits the prompts to these."""
        cache, levels = kwargs.get("past_key_values"), budget.levels_for(self.config.max_visual_tokens)
        is_filled = cache is not None and cache.get_seq_length() > 0
        if prompt.ids is None or kwargs.get("inputs_embeds") is not None or is_filled:
            raise ValueError(
                "An adaptive `num_visual_tokens` needs the whole prompt as `input_ids`, without `inputs_embeds` or a "
                "filled `past_key_values`."
            )
        check_mask(prompt, past_length=0)
        check_images_are_passed(prompt)
        counts, images = self._numbers_made(prompt), []
        if prompt.images:
            image_outputs = encoded_images(kwargs.get("mm_encoder_outputs"))
            if image_outputs is None:
                pixel_values = kwargs.pop("pixel_values")
                image_outputs = self.get_image_features(pixel_values, [levels[-1]] * len(counts), return_dict=True)
                kwargs["mm_encoder_outputs"] = {"image": image_outputs}
            images = list(cut_visual_tokens(image_outputs, [levels[-1]] * len(counts)).pooler_output)
        shortest = {}
        ids = self._resize_prompt(prompt, counts, [1] * len(counts), config, shortest)
        probed = split_prompts(ids, shortest["attention_mask"], self.config.image_token_id, images)

        eos_token_ids = [] if config.eos_token_id is None else config.eos_token_id
        eos_token_ids = torch.tensor(eos_token_ids, device=ids.device).flatten()
        # A cache of another kind is filled from the start, and so is any where tokens are guessed ahead, by an
        # assistant model or from the prompt.
        is_assisted = config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION
        reuse = (
            config.use_cache
            and config.cache_implementation in (None, "dynamic")
            and (cache is None or isinstance(cache, VisualTokenCache))
            and not is_assisted
            and can_reuse(self, probed)
        )
        climb(self, probed, levels, budget, eos_token_ids, reuse, can_leave_rest=num_copies(config) == 1)

        fitted = self._fit_to_levels(prompt, probed, counts, config, reuse, kwargs)
        confidence = torch.full((len(probed), len(levels)), float("nan"), device=ids.device)
        for row, entry in enumerate(probed):
            confidence[row, : len(entry.confidence)] = torch.tensor(entry.confidence)
        fitted.outcome = {
            "visual_token_level": torch.tensor([entry.level for entry in probed], device=ids.device),
            "visual_token_confidence": confidence,
            "visual_tokens_processed": torch.tensor([entry.num_processed for entry in probed], device=ids.device),
        }
        return fitted

    def _fit_to_levels(
        self, prompt: Prompt, probed: list[ProbedPrompt], counts: list[int], config, reuse: bool, kwargs: dict
    ) -> FittedPrompt:
        """
        The prompts at the levels where they stopped.

        Args:
            counts: Visual tokens of each image in the prompts as they were passed.
            reuse: Whether `generate` goes on from what was computed of them.
        """
        new_counts = [entry.level for entry in probed for _ in entry.images]
        ids = self._resize_prompt(prompt, counts, new_counts, config, kwargs)
        images = [image.at(count) for image, count in zip(prompt.images, new_counts)]
        rows = images_per_row(ids == self.config.image_token_id, images)
        if not reuse:
            for entry in probed:
                entry.num_processed += entry.level * len(entry.images)
            self._pass_images([(index, 0, count) for index, count in enumerate(new_counts)], kwargs)
        else:
            if kwargs.get("past_key_values") is None:
                kwargs["past_key_values"] = VisualTokenCache(config=self.config.get_text_config(decoder=True))
            merge_states(probed, kwargs["past_key_values"])
            kwargs["past_key_values"].batch_repeat_interleave(num_copies(config))
            kwargs.pop("mm_encoder_outputs", None)
            if unread := [tokens for entry in probed for tokens in entry.unread]:
                kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=unread)}
            if config.cache_implementation is not None:
                kwargs["cache_implementation"] = None  # not both
        return FittedPrompt(ids, CachedPrompts(ids, kwargs["attention_mask"].ne(0), rows, ids.shape[1]))
