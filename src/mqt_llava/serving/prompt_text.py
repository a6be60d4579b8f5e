# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""The text of a prompt, from the token ids that are left of it where vLLM hands it to a model's processor."""

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_text(tokenizer: "PreTrainedTokenizerBase", ids: list[int], image_token_id: int) -> str:
    """
    The text that a tokenizer makes these ids of.

    Tokenizers write a space in front of a text, of a text between two added tokens too or not. Decoding takes it away
    from each piece that is decoded by itself, so the pieces are those with which the ids come back. Ids of no text,
    which a client made itself, become what decoding makes of them.

    Args:
        ids: A prompt before its placeholders are expanded, without what the tokenizer puts in front of every prompt.
        image_token_id: The placeholder's id.
    """
    # What follows a placeholder is a piece of its own for every tokenizer of this package.
    texts = []
    for alone in ({image_token_id}, set(tokenizer.added_tokens_decoder)):
        texts.append("".join(decode(tokenizer, piece) for piece in pieces(ids, alone)))
        if tokenizer.encode(texts[-1], add_special_tokens=False) == ids:
            return texts[-1]
    return texts[0]


def pieces(ids: list[int], alone: Container[int]) -> Iterator[list[int]]:
    """Ids in the order of a prompt: each of some by itself, and what is between two of those together."""
    start = 0
    for end, token_id in enumerate(ids):
        if token_id in alone:
            yield from (ids[start:end], ids[end : end + 1])
            start = end + 1
    yield ids[start:]


def decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    text: Any = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if ids else ""
