# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Prompts whose images change their number of visual tokens.

A prompt holds one placeholder token per visual token. The functions here tell which placeholder belongs to which
image, re-size the runs of placeholders, and cut encoded images to fit.
"""

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_compressed_llava import check_num_visual_tokens


TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass
class ShownImage:
    """
    An image as a prompt shows it.

    Args:
        num_visual_tokens: How many of the prompt's tokens are its.
        pixels, tokens: `(channels, height, width)` or its visual tokens `(M or fewer, hidden_size)`, whichever was
            passed: they tell images apart. Neither where an image was not passed.
        question: Tokens of the question that the image is encoded for, `(length,)`, in models where there is one.
        is_run: Whether it may be several images beside each other: a run of placeholders that nobody told apart.
    """

    num_visual_tokens: int
    pixels: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    question: torch.Tensor | None = None
    is_run: bool = False

    @property
    def is_passed(self) -> bool:
        return self.pixels is not None or self.tokens is not None

    def at(self, num_visual_tokens: int) -> "ShownImage":
        return replace(self, num_visual_tokens=num_visual_tokens)

    def is_same(self, other: "ShownImage") -> bool | None:
        """Whether the two are one image, at whatever number of visual tokens; None where that cannot be told."""
        if self.question is not None and other.question is not None and not is_equal(self.question, other.question):
            return False
        if self.pixels is not None and other.pixels is not None:
            return is_equal(self.pixels, other.pixels)
        if self.tokens is not None and other.tokens is not None:
            length = min(len(self.tokens), len(other.tokens))
            return is_equal(self.tokens[:length], other.tokens[:length])
        return None


def is_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and bool((first == second.to(first.device)).all())


@dataclass
class Prompt:
    """
    A batch of prompts as `generate` is called with.

    Args:
        ids: `(batch, length)`; None beside `inputs_embeds` alone.
        mask: Its attention mask; wider, where the first columns are in a cache and were not passed.
        placeholders: Where visual tokens go, bool `(batch, length)`.
        images: Those that are passed, in the order of the prompts.
        num_visual_tokens: Of each of them, as the processor says; None where it does not.
    """

    ids: torch.Tensor | None
    mask: torch.Tensor
    placeholders: torch.Tensor
    images: list[ShownImage]
    num_visual_tokens: list[int] | None


@torch.compiler.disable  # a compiled graph that knew the numbers would hold for these alone
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
        ValueError: `visual_token_counts` and placeholders disagree, or the equal shares do not come out even.
    """
    per_row = placeholder_mask.sum(-1).tolist()
    total = sum(per_row)
    share = total // num_images if num_images else 0
    if visual_token_counts is not None:
        num_visual_tokens = check_num_visual_tokens(
            visual_token_counts, max_visual_tokens, num_images, name="visual_token_counts"
        )
    else:
        num_visual_tokens = [share] * num_images

    # An image is one unbroken run of placeholders or a part of one: where a run ends, an image ends.
    run_ends = placeholder_mask & ~nn.functional.pad(placeholder_mask[:, 1:], (0, 1))
    ends = placeholder_mask.flatten().cumsum(0)[run_ends.flatten()].tolist()
    if (
        sum(num_visual_tokens) != total
        or not set(ends) <= set(accumulate(num_visual_tokens))
        or not all(1 <= m <= max_visual_tokens for m in num_visual_tokens)
    ):
        error = f"Image features and image tokens do not match: {total} image tokens in the prompts, "
        if visual_token_counts is None:
            raise ValueError(
                f"{error}which {num_images} images cannot share equally (image tokens per prompt: {per_row}, "
                f"1..{max_visual_tokens} for an image). Pass the `visual_token_counts` that the processor returns."
            )
        raise ValueError(
            f"{error}{sum(num_visual_tokens)} visual tokens for {num_images} images "
            f"(image tokens per prompt: {per_row}, visual tokens per image: {num_visual_tokens}). `input_ids` and "
            "`pixel_values` or `mm_encoder_outputs` must hold the same images."
        )
    return num_visual_tokens


def resize_prompt(
    inputs: dict[str, torch.Tensor],
    placeholder_mask: torch.Tensor,
    attention_mask: torch.Tensor,
    old_num_visual_tokens: list[int],
    new_num_visual_tokens: list[int],
    pad_values: dict[str, int],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Grows or shrinks each image's run of placeholders and pads the rows on the left again.

    Args:
        inputs: Tensors `(batch, length, ...)` that go along with the tokens: `input_ids`, `mm_token_type_ids`, ...
        placeholder_mask: Bool `(batch, length)`, true at the placeholders.
        attention_mask: `(batch, length)`, zero at the padding, which is dropped wherever it stands.
        old_num_visual_tokens, new_num_visual_tokens: Placeholders per image before and after.
        pad_values: What to pad each of `inputs` with.

    Returns:
        The tensors and the attention mask `(batch, new length)`.
    """
    # Every token says how often it stands in the new prompt: text once, padding never, and of an image's placeholders
    # the first `new` ones, the last of them as often as it takes to grow.
    repeats = attention_mask.ne(0).long()
    run = [
        1 if position < min(old, new) - 1 else (1 + max(0, new - old) if position == min(old, new) - 1 else 0)
        for old, new in zip(old_num_visual_tokens, new_num_visual_tokens)
        for position in range(old)
    ]
    repeats[placeholder_mask] = repeats.new_tensor(run)

    lengths = repeats.sum(-1)
    length = int(lengths.max())
    new_mask = attention_mask.new_zeros((len(repeats), length))
    resized = {
        name: tensor.new_full((len(repeats), length, *tensor.shape[2:]), pad_values[name])
        for name, tensor in inputs.items()
    }
    for row, row_length in enumerate(lengths.tolist()):
        new_mask[row, length - row_length :] = 1
        for name, tensor in inputs.items():
            resized[name][row, length - row_length :] = tensor[row].repeat_interleave(repeats[row], dim=0)
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


def images_per_row(placeholder_mask: torch.Tensor, images: list[ShownImage]) -> list[list[ShownImage]]:
    """Groups the images of a batch by the prompt that shows them."""
    images, rows = iter(images), []
    for num_placeholders in placeholder_mask.sum(-1).tolist():
        row = []
        while num_placeholders > 0:
            row.append(next(images))
            num_placeholders -= row[-1].num_visual_tokens
        rows.append(row)
    return rows


def run_lengths(placeholder_mask: torch.Tensor) -> list[int]:
    """How long the unbroken runs of placeholders of one prompt are, `(length,)`."""
    is_run, lengths = placeholder_mask.unique_consecutive(return_counts=True)
    return lengths[is_run].tolist()


def infer_mask(ids: torch.Tensor, config: GenerationConfig) -> torch.Tensor | None:
    """
    The attention mask of prompts that have none, `(batch, length)`: as in transformers, pad tokens are padding; but
    between other tokens they are text. None where they end sequences too.
    """
    pad_token_id, eos_token_id = config.pad_token_id, config.eos_token_id
    if pad_token_id is None or pad_token_id in torch.tensor([] if eos_token_id is None else eos_token_id):
        return None
    is_token = ids.ne(pad_token_id)
    return (is_token.cummax(-1).values & is_token.flip(-1).cummax(-1).values.flip(-1)).long()


def is_padded_on_the_left(attention_mask: torch.Tensor) -> bool:
    """Whether no padding stands behind a token."""
    is_token = attention_mask.ne(0)
    return bool((is_token == is_token.cummax(-1).values).all())


def num_copies(config: GenerationConfig) -> int:
    """How often transformers' `generate` repeats each prompt."""
    return max(config.num_beams, config.num_return_sequences)


def hide_placeholders(ids: torch.Tensor, num_columns: int, image_token_id: int) -> torch.Tensor:
    """
    Prompts without placeholders in the columns that a cache holds. transformers counts the placeholders of whole
    prompts when it copies images for beams and further sequences, but is only given the new images.
    """
    ids = ids.clone()
    for row in ids:
        text, cached = row[row != image_token_id], row[:num_columns]
        if len(text):  # a token that the prompt has anyhow, for processors of logits that look which ones it has
            cached[cached == image_token_id] = text[-1]
    return ids


def pad_token_id(config: GenerationConfig) -> int:
    """What rows are padded with where nothing is looked at."""
    return 0 if config.pad_token_id is None else config.pad_token_id


def check_mask(prompt: Prompt, past_length: int) -> None:
    """
    Raises:
        ValueError: The attention mask is neither of the prompt nor of a cache's columns and the prompt.
    """
    shape = prompt.placeholders.shape
    if prompt.mask.shape not in (shape, (shape[0], past_length + shape[1])):
        columns = f", or also cover the {past_length} columns of `past_key_values`" if past_length else ""
        raise ValueError(
            f"`attention_mask` is {tuple(prompt.mask.shape)} and `input_ids` {tuple(shape)}: the mask must be of the "
            f"shape of the prompt{columns}."
        )


def check_not_resized(
    old_num_visual_tokens: list[int],
    num_visual_tokens: int | list[int] | None,
    new_num_visual_tokens: list[int],
    name: str,
) -> None:
    """
    Raises:
        ValueError: Images of `name`, which cannot be re-sized, are asked for at another number of visual tokens.
    """
    if new_num_visual_tokens != old_num_visual_tokens:
        raise ValueError(
            f"`num_visual_tokens` is {num_visual_tokens}, but `{name}` holds {old_num_visual_tokens} visual tokens "
            "per image and cannot be re-sized. Pass `input_ids` instead, the whole prompt, and no cache or a "
            "`VisualTokenCache`."
        )


def check_images_are_passed(prompt: Prompt) -> None:
    """
    Raises:
        ValueError: There are placeholders, but no images.
    """
    if not prompt.images and prompt.placeholders.any():
        raise ValueError(
            f"The prompt has {int(prompt.placeholders.sum())} image tokens, but the images of the prompt are missing: "
            "pass `pixel_values` or `mm_encoder_outputs`."
        )


def encoded_images(mm_encoder_outputs: dict[str, ModelOutput] | None) -> ModelOutput | None:
    """
    What `mm_encoder_outputs` holds for images.

    Raises:
        TypeError, ValueError: It is not of the form `{"image": output of get_image_features}`.
    """
    form = "{'image': output of get_image_features}"
    if mm_encoder_outputs is None:
        return None
    if not isinstance(mm_encoder_outputs, dict) or isinstance(mm_encoder_outputs, ModelOutput):
        raise TypeError(f"`mm_encoder_outputs` is a {type(mm_encoder_outputs).__name__}, but must be {form}.")
    if unknown := set(mm_encoder_outputs) - {"image"}:
        raise ValueError(f"`mm_encoder_outputs` has {sorted(unknown)}, but must be {form}.")
    image_outputs = mm_encoder_outputs.get("image")
    if image_outputs is None:
        return None
    if not isinstance(image_outputs, ModelOutput) or image_outputs.get("pooler_output") is None:
        raise TypeError(
            f"`mm_encoder_outputs['image']` is a {type(image_outputs).__name__}, but must be the output of "
            "get_image_features with its `pooler_output`."
        )
    if not all(isinstance(tokens, torch.Tensor) and tokens.ndim == 2 for tokens in image_outputs.pooler_output):
        raise ValueError(
            "`mm_encoder_outputs['image'].pooler_output` must hold a tensor `(visual tokens, hidden_size)` per image."
        )
    return image_outputs


def cut_visual_tokens(image_outputs: ModelOutput, num_visual_tokens: list[int]) -> BaseModelOutputWithPooling:
    """
    Encoded images at fewer visual tokens, in a new object: what the caller encoded stays as it is, for other numbers.

    Args:
        image_outputs: What `get_image_features` returns.
        num_visual_tokens: Visual tokens of each image.

    Raises:
        ValueError: An image was encoded into fewer tokens than are asked for now.
    """
    lengths = [len(tokens) for tokens in image_outputs.pooler_output]
    if any(m > length for m, length in zip(num_visual_tokens, lengths)):
        raise ValueError(
            f"Image features and image tokens do not match: {num_visual_tokens} visual tokens are asked for, but the "
            f"images were encoded into {lengths}. Encode them without `visual_token_counts` to have all at hand."
        )
    return BaseModelOutputWithPooling(
        pooler_output=[tokens[:m] for tokens, m in zip(image_outputs.pooler_output, num_visual_tokens)]
    )
