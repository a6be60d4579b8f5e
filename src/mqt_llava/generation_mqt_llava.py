# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Prompts whose images change their number of visual tokens.

A prompt holds one placeholder token per visual token. The functions here count which placeholder belongs to which
image, and re-size the runs of placeholders when `generate` is asked for another number than the prompt was made with.
"""

import copy
from bisect import bisect_right
from itertools import accumulate

import torch
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .configuration_mqt_llava import check_num_visual_tokens


def visual_tokens_per_image(
    placeholder_mask: torch.Tensor,
    num_images: int,
    max_visual_tokens: int,
    visual_token_counts: torch.Tensor | list[int] | None = None,
) -> list[int]:
    """
    How many placeholders of a batch belong to each image.

    Args:
        placeholder_mask: Bool `(batch, length)`, true at the placeholders.
        num_images: Images of the whole batch, in the order in which the prompts show them.
        max_visual_tokens: M.
        visual_token_counts: Long `(num_images,)`, as the processor emits them. Without them the placeholders are
            shared equally by the images, which must come out even within each row.

    Returns:
        `num_images` integers.

    Raises:
        ValueError: Counts and placeholders disagree, or the equal shares do not come out even.
    """
    per_row = placeholder_mask.sum(-1).tolist()
    total = sum(per_row)
    error = f"Image features and image tokens do not match: {total} image tokens in the prompts, "

    if visual_token_counts is not None:
        counts = check_num_visual_tokens(
            visual_token_counts, max_visual_tokens, num_images, name="visual_token_counts"
        )
        # An image never spans two prompts, so each row must end where an image ends.
        row_ends, image_ends = set(accumulate(per_row)) - {0}, set(accumulate(counts))
        if sum(counts) != total or not row_ends <= image_ends:
            raise ValueError(
                f"{error}{sum(counts)} visual tokens for {num_images} images "
                f"(image tokens per prompt: {per_row}, visual tokens per image: {counts})."
            )
        return counts

    share = total // num_images if num_images else 0
    if share == 0 or total % num_images or any(tokens % share for tokens in per_row):
        raise ValueError(
            f"{error}which {num_images} images cannot share equally (image tokens per prompt: {per_row}). "
            "Pass the `visual_token_counts` that the processor returns."
        )
    return [share] * num_images


def resize_prompt(
    inputs: dict[str, torch.Tensor],
    placeholder_mask: torch.Tensor,
    attention_mask: torch.Tensor,
    old_counts: list[int],
    new_counts: list[int],
    pad_values: dict[str, int],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Grows or shrinks each image's run of placeholders and pads the rows on the left again.

    Args:
        inputs: Tensors `(batch, length)` that go along with the tokens: `input_ids`, `mm_token_type_ids`, ...
        placeholder_mask: Bool `(batch, length)`, true at the placeholders.
        attention_mask: `(batch, length)`, zero at the padding, which is dropped wherever it stands.
        old_counts, new_counts: Placeholders per image before and after.
        pad_values: What to pad each of `inputs` with.

    Returns:
        The tensors and the attention mask `(batch, new length)`.
    """
    # Every token says how often it stands in the new prompt: text once, padding never, and of an image's placeholders
    # the first `new` ones, the last of them as often as it takes to grow.
    repeats = attention_mask.ne(0).long()
    run = [
        1 if position < min(old, new) - 1 else (1 + max(0, new - old) if position == min(old, new) - 1 else 0)
        for old, new in zip(old_counts, new_counts)
        for position in range(old)
    ]
    repeats[placeholder_mask] = torch.tensor(run, device=repeats.device)

    lengths = repeats.sum(-1)
    length = int(lengths.max())
    new_mask = attention_mask.new_zeros((len(repeats), length))
    resized = {name: tensor.new_full((len(repeats), length), pad_values[name]) for name, tensor in inputs.items()}
    for row, row_length in enumerate(lengths.tolist()):
        new_mask[row, length - row_length :] = 1
        for name, tensor in inputs.items():
            resized[name][row, length - row_length :] = tensor[row].repeat_interleave(repeats[row])
    return resized, new_mask


def restore_prompt(sequences: torch.Tensor, prompt: torch.Tensor, resized_length: int) -> torch.Tensor:
    """
    Puts the caller's own prompt back in front of what was generated from the re-sized one, so that
    `sequences[:, prompt.shape[1]:]` holds the new tokens whatever m was.

    Args:
        sequences: `(batch * k, resized_length + new)`, k the number of returned sequences per prompt.
        prompt: `(batch, length)`, as the caller passed it.
        resized_length: Length of the prompt that was generated from.

    Returns:
        `(batch * k, length + new)`.
    """
    prompt = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0).to(sequences.device)
    return torch.cat([prompt, sequences[:, resized_length:]], dim=-1)


def encoded_images(mm_encoder_outputs: dict[str, ModelOutput] | None) -> ModelOutput | None:
    """
    What `mm_encoder_outputs` holds for images.

    Raises:
        ValueError: It is not of the form `{"image": output of get_image_features}`.
    """
    if unknown := set(mm_encoder_outputs or {}) - {"image"}:
        raise ValueError(
            f"`mm_encoder_outputs` has {sorted(unknown)}, but must be {{'image': output of get_image_features}}."
        )
    return (mm_encoder_outputs or {}).get("image")


def images_per_row(placeholder_mask: torch.Tensor, counts: list[int]) -> list[list[int]]:
    """Groups the visual tokens per image by the prompt they stand in."""
    counts, rows = iter(counts), []
    for num_placeholders in placeholder_mask.sum(-1).tolist():
        row = []
        while sum(row) < num_placeholders:
            row.append(next(counts))
        rows.append(row)
    return rows


def cut_visual_tokens(image_outputs: ModelOutput, counts: list[int], is_kept: list[bool] | None = None) -> ModelOutput:
    """
    Encoded images at fewer visual tokens, in a new object: what the caller encoded stays as it is, for other budgets.

    Args:
        image_outputs: What `get_image_features` returns.
        counts: Visual tokens of each image that is kept.
        is_kept: Which images to keep, all by default.

    Raises:
        ValueError: An image was encoded into fewer tokens than are asked for now.
    """
    visual_tokens = list(image_outputs.pooler_output)
    if is_kept is not None:
        visual_tokens = [tokens for tokens, kept in zip(visual_tokens, is_kept) if kept]
    lengths = [len(tokens) for tokens in visual_tokens]
    if any(count > length for count, length in zip(counts, lengths)):
        raise ValueError(
            f"Image features and image tokens do not match: {counts} visual tokens are asked for, but the images were "
            f"encoded into {lengths}. Encode them without `visual_token_counts` to have all of them at hand."
        )
    cut = copy.copy(image_outputs)
    cut["pooler_output"] = [tokens[:count] for tokens, count in zip(visual_tokens, counts)]
    return cut


def count_cached_images(
    rows: list[list[int]], placeholder_mask: torch.Tensor, past_length: int, cached_rows: list[list[int]]
) -> list[int]:
    """
    How many images of each prompt a cache holds.

    Args:
        rows: Visual tokens of the images in each prompt.
        placeholder_mask: Bool `(batch, length)`, true at the placeholders.
        past_length: Length of the cache, which holds the beginning of the prompts.
        cached_rows: What `rows` was when the cache was filled.

    Raises:
        ValueError: The cache holds the images at another number of visual tokens.
    """
    numbers = []
    for row, seen, cached in zip(rows, placeholder_mask[:, :past_length].sum(-1).tolist(), cached_rows):
        number = bisect_right(list(accumulate(row)), seen)
        if row[: len(cached)] != cached or sum(row[:number]) != seen:
            raise ValueError(
                f"`past_key_values` holds images at {cached} visual tokens, but the prompt now asks for "
                f"{row[: len(cached)]}. Continue with the same `num_visual_tokens`, or without the cache."
            )
        numbers.append(number)
    return numbers


class MQTLlavaGenerationMixin:
    """`generate` with a number of visual tokens of its own."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        num_visual_tokens: int | list[int] | None = None,
        **kwargs,
    ):
        """
        [`~GenerationMixin.generate`] at any number of visual tokens, whatever number the prompt was made with.

        The prompt's runs of `<image>` tokens are re-sized first. What is returned starts with the prompt as it was
        passed, so `output[:, input_ids.shape[1]:]` are the new tokens; `past_key_values`, attentions, hidden states,
        `max_length` and streamers refer to the re-sized prompt.

        Args:
            inputs, generation_config, *args, **kwargs:
                As in [`~GenerationMixin.generate`], with the processor's output among them. Instead of `pixel_values`,
                `mm_encoder_outputs={"image": model.get_image_features(pixel_values)}` holds images that are encoded
                already; it is not changed and can be used again at another number of tokens.
            num_visual_tokens (`int` or `list[int]`, *optional*):
                Visual tokens of all images, or one number per image. Without it, the `num_visual_tokens` of the
                `generation_config` that is passed holds, then that of the model's, then the prompt's own number.

        Raises:
            TypeError, ValueError: `num_visual_tokens` is no integer in 1..M, or not one per image.
            ValueError: The prompt cannot be re-sized: it is given as `inputs_embeds`, its images are missing, or
                `past_key_values` holds the images at another number of visual tokens.
        """
        # An assistant model gets a copy of the main model's configuration, and a prompt that is re-sized already.
        if generation_config is not None and generation_config.is_assistant:
            return super().generate(inputs, generation_config, *args, **kwargs)
        for config in (generation_config, self.generation_config):
            if num_visual_tokens is None and config is not None:
                num_visual_tokens = getattr(config, "num_visual_tokens", None)

        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        fitted, rows = self._fit_prompt(prompt, num_visual_tokens, kwargs)
        if inputs is not None:
            inputs = fitted
        elif fitted is not None:
            kwargs["input_ids"] = fitted
        outputs = super().generate(inputs, generation_config, *args, **kwargs)
        if prompt is None or rows is None:
            return outputs

        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        sequences = restore_prompt(sequences, prompt, fitted.shape[1])
        if isinstance(outputs, torch.Tensor):
            cache, outputs = kwargs.get("past_key_values"), sequences
        else:
            cache, outputs.sequences = outputs.get("past_key_values"), sequences
        if cache is not None:
            # So that a conversation continued from this cache can be checked against it.
            cache.visual_token_counts = [row for row in rows for _ in range(len(sequences) // len(prompt))]
        return outputs

    def _fit_prompt(
        self, prompt: torch.Tensor | None, num_visual_tokens: int | list[int] | None, kwargs: dict
    ) -> tuple[torch.Tensor | None, list[list[int]] | None]:
        """
        Re-sizes the prompt, and what goes along with it in `kwargs`, to the number of visual tokens that is asked for.

        Returns:
            The prompt to generate from, and the visual tokens of the images in each of its rows; None where there is
            nothing to re-size.
        """
        embeds, pixel_values = kwargs.get("inputs_embeds"), kwargs.get("pixel_values")
        image_outputs = encoded_images(kwargs.get("mm_encoder_outputs"))
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        cache = kwargs.get("past_key_values")
        past_length = cache.get_seq_length() if cache is not None else 0
        cached_rows = getattr(cache, "visual_token_counts", None) if past_length else None

        if image_outputs is not None:
            num_images = len(image_outputs.pooler_output)
        elif pixel_values is not None:
            num_images = len(pixel_values)
        else:
            num_images = sum(len(row) for row in cached_rows or [])
        asked = None
        if num_visual_tokens is not None:
            asked = check_num_visual_tokens(num_visual_tokens, self.config.max_visual_tokens, num_images)
        tokens = prompt if embeds is None else embeds
        if tokens is None or num_images == 0:
            if asked is not None and embeds is None and not past_length and prompt is not None:
                if self.model.get_placeholder_mask(prompt, None).any():
                    raise ValueError(
                        f"`num_visual_tokens` is {num_visual_tokens}, but the images of the prompt are missing: pass "
                        "`pixel_values` or `mm_encoder_outputs`."
                    )
            return prompt, None

        mask = kwargs.get("attention_mask")
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device) if mask is None else mask
        placeholders = self.model.get_placeholder_mask(prompt if embeds is None else None, embeds)
        given = kwargs.get("visual_token_counts")
        if past_length and asked is None:
            # Continued in transformers' own way, with the images and perhaps the tokens that are not cached yet?
            if mask.shape != tokens.shape[:2] or given is None or int(sum(given)) != int(placeholders.sum()):
                return prompt, None

        counts = visual_tokens_per_image(placeholders, num_images, self.config.max_visual_tokens, given)
        rows = images_per_row(placeholders, counts)
        cached_rows = rows if cached_rows is None else cached_rows
        if asked is not None and asked != counts:
            if embeds is not None:
                raise ValueError(
                    f"`num_visual_tokens` is {num_visual_tokens}, but `inputs_embeds` holds {counts} visual tokens "
                    "per image and cannot be re-sized. Pass `input_ids` instead."
                )
            prompt = self._resize_prompt(prompt, placeholders, mask, counts, asked, kwargs)
            placeholders = self.model.get_placeholder_mask(prompt, None)
            counts, rows = asked, images_per_row(placeholders, asked)

        # Images whose tokens are in the cache are not encoded again.
        cached = count_cached_images(rows, placeholders, past_length, cached_rows) if past_length else [0] * len(rows)
        is_new = [index >= number for row, number in zip(rows, cached) for index in range(len(row))]
        counts = [count for count, new in zip(counts, is_new) if new]
        kwargs.pop("visual_token_counts", None)
        if image_outputs is not None:
            kwargs["mm_encoder_outputs"] = (
                {"image": cut_visual_tokens(image_outputs, counts, is_new)} if counts else {}
            )
        elif pixel_values is not None and counts:
            kwargs["pixel_values"] = pixel_values[torch.tensor(is_new, device=pixel_values.device)]
            kwargs["visual_token_counts"] = torch.tensor(counts)
        elif pixel_values is not None:
            del kwargs["pixel_values"]
        return prompt, rows

    def _resize_prompt(self, prompt, placeholders, mask, old_counts, new_counts, kwargs) -> torch.Tensor:
        """Re-sizes `input_ids`, and in `kwargs` the attention mask and the token types."""
        if mask.shape != prompt.shape:
            raise ValueError(
                f"`attention_mask` is {tuple(mask.shape)} and `input_ids` {tuple(prompt.shape)}: "
                "a prompt can only be re-sized to `num_visual_tokens` as a whole, with a mask of its shape."
            )
        pad_token_id = self.generation_config.pad_token_id
        inputs = {"input_ids": prompt}
        inputs.update({name: kwargs[name] for name in ("token_type_ids", "mm_token_type_ids") if name in kwargs})
        pad_values = dict.fromkeys(inputs, 0) | {"input_ids": 0 if pad_token_id is None else pad_token_id}
        resized, kwargs["attention_mask"] = resize_prompt(
            inputs, placeholders, mask.to(prompt.device), old_counts, new_counts, pad_values
        )
        kwargs.pop("position_ids", None)  # rebuilt from the attention mask
        prompt = resized.pop("input_ids")
        kwargs.update(resized)
        return prompt
