"""
A LLaVA tokenizer whose tokenizer.json alone gives the ids that the original code assembles.

The original cuts a prompt at `<image>` and tokenises the pieces as texts of their own, so a Llama tokenizer puts `▁`
in front of the piece after `<image>`, whatever its `legacy` flag says; the flag decides about the piece after `</s>`.
Serving engines run the tokenizer themselves, so both rules must be in the file.
"""

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, normalizers
from transformers import AddedToken, LlamaTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ..models.processing_compressed_llava import IMAGE_TOKEN
from .conversion_error import ConversionError, blaming
from .input_files import check_types, read_optional_json, refuse_lfs_pointer
from .token_ids import check_vocabulary


FILES = ("tokenizer.json", "tokenizer.model")
# Settings that decide about ids, and what they may be.
SETTINGS = {
    "legacy": (bool, type(None)),
    "add_bos_token": (bool,),
    "add_eos_token": (bool,),
    "model_max_length": (int, float, type(None)),
}


def convert_llama_tokenizer(folder: Path, vocab_size: int) -> TokenizersBackend:
    """
    Args:
        folder: Has a Llama tokenizer: tokenizer.model or tokenizer.json, and tokenizer_config.json.
        vocab_size: The rows of the language model that it belongs to.

    Returns:
        The tokenizer with `<image>` as its last token, padding on the left.

    Raises:
        ConversionError: There is no tokenizer, it cannot be read, or it does not fit the language model.
    """
    files = [folder / name for name in FILES if (folder / name).is_file()]
    if not files:
        raise ConversionError(f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json is there.")
    for file in files:
        refuse_lfs_pointer(file)
    if files[0].name == "tokenizer.model":
        # transformers would go on to take it for a file of tiktoken.
        with blaming(f"{files[0]} is not a readable SentencePiece model"):
            SentencePieceProcessor(model_file=str(files[0]))
    config_file = folder / "tokenizer_config.json"
    config = read_optional_json(config_file)
    check_types(config, SETTINGS, config_file)
    # What a file does not say is what it was when the originals were trained: `legacy` and BOS. Today's defaults are
    # the opposite.
    legacy = config.get("legacy") is not False
    with blaming(f"The tokenizer in {folder} cannot be read"):
        original = LlamaTokenizer.from_pretrained(
            folder, legacy=legacy, add_bos_token=config.get("add_bos_token", True)
        )
        check_vocabulary(original, vocab_size)
        return llava_tokenizer(original, legacy)


def llava_tokenizer(original: LlamaTokenizer, legacy: bool) -> TokenizersBackend:
    tokenizer = TokenizersBackend(
        tokenizer_object=with_image_rule(original.backend_tokenizer, legacy),
        bos_token=original.bos_token,
        eos_token=original.eos_token,
        unk_token=original.unk_token,
        pad_token=original.pad_token or original.unk_token,
        add_bos_token=original.add_bos_token,
        add_eos_token=original.add_eos_token,
        model_max_length=original.model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    # Normalised, so that it is found after the normalizer has seen what stands behind it.
    tokenizer.add_tokens(AddedToken(IMAGE_TOKEN, special=True, normalized=True))
    return tokenizer


def with_image_rule(backend: Tokenizer, legacy: bool) -> Tokenizer:
    """
    Prepends the rules about spaces to the normalizer. The pre-tokenizer turns a space into `▁`, and prepends a `▁`
    only where a text does not begin with one.
    """
    rules = [normalizers.Replace(Regex(r"<image>(?!<image>|\z)"), "<image> ")]
    if legacy:
        # SentencePiece prepends its `▁` to a text that begins with a space as well.
        rules.insert(0, normalizers.Replace(Regex(r"\A "), "  "))
    if backend.normalizer is not None:
        rules.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(rules)
    return backend
