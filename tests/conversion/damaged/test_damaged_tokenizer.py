"""Tokenizers that do not fit their models."""

import json

import pytest

from tests.builders.original_checkpoints import POINTER


def test_tokenizer_that_does_not_fit(original, refused):
    full = (original.folder / "tokenizer.model").read_bytes()
    for text in (b"", b"text", full[:3000], full[: len(full) // 2], full[:-50], full + full):
        original.write("tokenizer.model", text)
        message = refused(original.folder)
        assert "is not a readable SentencePiece model" in message or "does not fit the language model" in message


@pytest.mark.parametrize(
    "vocab_size, message",
    [
        (1001, "1 of these ids have no token, the first of them 1000"),
        (1010, "10 of these ids have no token, the first of them 1000"),
        (999, "it has tokens with the ids 999."),
        (900, "it has tokens with the ids 900..999 (100 of them)."),
    ],
)
def test_tokenizer_of_another_size(original, refused, vocab_size, message):
    original.config["vocab_size"] = vocab_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        original.tensors[name] = original.tensors[name].repeat(2, 1)[:vocab_size].clone()
    assert message in refused(original.save().folder)


def test_tokenizer_that_has_an_image_token(original, convert):
    """Of its own, with a row or without one."""
    for number, vocab_size in enumerate((1000, 1001)):
        tokens = json.loads((original.folder / "tokenizer_config.json").read_text())
        tokens["added_tokens_decoder"]["1000"] = {
            "content": "<image>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }  # fmt: skip
        original.write("tokenizer_config.json", json.dumps(tokens))
        original.config["vocab_size"] = vocab_size
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            original.tensors[name] = original.tensors[name].repeat(2, 1)[:vocab_size].clone()
        config = json.loads((convert(original.save().folder, output=str(number)) / "config.json").read_text())
        assert (config["image_token_id"], config["text_config"]["vocab_size"]) == (1000, 1001)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("bos_token_id", 2, "bos_token_id is 2, but the tokenizer's is 1 (<s>)"),
        ("eos_token_id", 5, "eos_token_id is 5, but the tokenizer's is 2 (</s>)"),
        ("pad_token_id", 7, "pad_token_id is 7, but the tokenizer's is "),
        ("bos_token_id", 1000, "must be an id of the original's vocabulary"),
        ("eos_token_id", 10**30, "must be an id of the original's vocabulary"),
        ("pad_token_id", -2, "must be an id of the original's vocabulary"),
        ("eos_token_id", "2", "eos_token_id"),
        ("eos_token_id", True, "eos_token_id"),
        ("eos_token_id", [2, 5000], "must be an id of the original's vocabulary"),
    ],
)
def test_special_ids_that_do_not_fit(original, refused, file, name, value, message):
    original.edit(file, **{name: value})
    assert message in refused(original.folder)


@pytest.mark.parametrize("name, value", [("pad_token_id", -1), ("pad_token_id", None), ("eos_token_id", [2, 13])])
def test_special_ids_that_fit(original, convert, name, value):
    original.config[name] = value
    original.write("generation_config.json", json.dumps({name: value}))
    saved = json.loads((convert(original.save().folder) / "generation_config.json").read_text())
    assert (saved["bos_token_id"], saved["pad_token_id"]) == (1, 0)
    assert saved["eos_token_id"] == (value if name == "eos_token_id" else 2)


def test_ids_that_no_config_names_are_the_tokenizers(original, convert):
    original.config["eos_token_id"] = None
    (original.folder / "generation_config.json").unlink()
    assert json.loads((convert(original.save().folder) / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize("text", ["{}", "null", "[]", '{"model": {}}', '{"model": {"type": "BPE"}}', "", "{", POINTER])
def test_tokenizer_json_that_is_none(original, refused, text):
    original.write("tokenizer.json", text)
    assert "tokenizer" in refused(original.folder)


@pytest.mark.parametrize(
    "name, value",
    [("legacy", "false"), ("add_bos_token", "false"), ("add_eos_token", 1), ("model_max_length", "2048")],
)
def test_tokenizer_settings_of_wrong_types(original, refused, name, value):
    original.edit("tokenizer_config.json", **{name: value})
    assert f"tokenizer_config.json: {name} is {value!r}, but must be of the type " in refused(original.folder)
