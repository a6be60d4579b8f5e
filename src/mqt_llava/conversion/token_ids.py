"""
Whether a tokenizer belongs to a model. If not, every answer is nonsense, and no error says so.
"""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..models.processing_compressed_llava import IMAGE_TOKEN
from .conversion_error import ConversionError, listed


SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """
    Args:
        tokenizer: The original's, before `<image>` is added, which might take the place of a token that it lost.
        vocab_size: The rows of the original language model.

    Raises:
        ConversionError: A row has no token, or a token other than `<image>` no row.
    """
    if type(vocab_size) is not int or vocab_size < 1:
        raise ConversionError(f"The language model's vocab_size is {vocab_size!r}, but must be an integer above 0.")
    tokens = tokenizer.get_vocab()
    without_row = {number for token, number in tokens.items() if number >= vocab_size and token != IMAGE_TOKEN}
    if without_row:
        raise ConversionError(
            f"The tokenizer does not fit the language model, whose vocab_size is {vocab_size}: it has tokens with the "
            f"ids {listed_ids(without_row)}."
        )
    ids = {number for number in tokens.values() if number < vocab_size}
    if len(ids) < vocab_size:
        first = next(number for number in range(vocab_size) if number not in ids)
        raise ConversionError(
            f"The tokenizer does not fit the language model, whose vocab_size is {vocab_size}: "
            f"{vocab_size - len(ids)} of these ids have no token, the first of them {first}. It is damaged or another "
            "model's."
        )


def check_special_ids(ids: dict[str, int | list[int] | None], tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """
    Args:
        ids: By the names in `SPECIAL_IDS`, as a config says them.
        tokenizer: Knows the special tokens.
        file: Where the ids are from, for the error.

    Raises:
        ConversionError: An id is none of the vocabulary, or stands for another token than the tokenizer's.
    """
    known = set(tokenizer.get_vocab().values()) - {tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)}
    for name in SPECIAL_IDS:
        value = ids[name]
        if is_unset(name, value):
            continue
        values = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if not all(type(number) is int and number in known for number in values):
            raise ConversionError(
                f"{file}: {name} is {value!r}, but must be an id of the original's vocabulary, 0..{max(known)}."
            )
        # Padding is masked, so any token serves that is left out of answers.
        allowed = tokenizer.all_special_ids if name == "pad_token_id" else [getattr(tokenizer, name)]
        if not set(allowed) & set(values):
            tokens = " or ".join(f"{number} ({tokenizer.convert_ids_to_tokens(number)})" for number in allowed)
            raise ConversionError(f"{file}: {name} is {value!r}, but the tokenizer's is {tokens}.")


def is_unset(name: str, value: int | list[int] | None) -> bool:
    # Llama's first configs say -1 for a model without padding.
    return value is None or name == "pad_token_id" and value == -1


def listed_ids(ids: set[int]) -> str:
    """The first and the last, which for a truncated file says it all."""
    return f"{min(ids)}..{max(ids)} ({len(ids)} of them)" if len(ids) > 10 else listed(map(str, sorted(ids)))
