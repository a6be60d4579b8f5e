import json
import random
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.llama_tokenizer import convert_llama_tokenizer
from tests.builders.paths import FIXTURES, GOLDEN_NAMES


IMAGE = 1000


@pytest.fixture
def saved(golden, monkeypatch):
    """The saved tokenizer, loaded where SentencePiece is not installed."""
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    return PreTrainedTokenizerFast.from_pretrained(golden[1])


def test_ids_of_all_golden_prompts(golden, saved):
    original, _ = golden
    cases = json.loads((original / "golden.json").read_text())
    prompts = {case["key"].split(".")[0]: case["prompt"] for case in cases["cases"]}
    prompts |= {name: cases[name]["prompt"] for name in ("multiturn", "twoimages", "textonly")}
    assert len(prompts) == 6
    expected = load_file(original / "golden.safetensors")
    for name, prompt in prompts.items():
        ids = [-200 if token == IMAGE else token for token in saved(prompt).input_ids]
        assert ids == expected[f"{name}.input_ids"].tolist(), name
        assert saved.encode(prompt) == saved(prompt).input_ids


def test_only_the_last_of_a_run_of_images_is_followed_by_a_space(saved):
    assert saved.convert_ids_to_tokens(saved.encode("<image><image><image>\na")) == [
        *("<s>", "<image>", "<image>", "<image>", "▁", "<0x0A>", "a")
    ]
    assert saved.convert_ids_to_tokens(saved.encode("a<image><image>")) == ["<s>", "▁a", "<image>", "<image>"]


def test_settings(saved):
    assert saved.padding_side == "left"
    assert (saved.pad_token, saved.pad_token_id) == ("<unk>", 0)
    assert saved.model_max_length == 2048
    assert len(saved) == IMAGE + 1
    batch = saved(["<image>\na", "a photo of a cat"], padding=True, return_tensors="pt")
    assert batch.input_ids[0, 0] == 0 and batch.attention_mask[0, 0] == 0
    assert saved.decode(saved("a <image> b").input_ids, skip_special_tokens=True).split() == ["a", "b"]


def sentencepiece_ids(model, text: str) -> list[int]:
    """A `legacy: true` tokenizer of the time, piece by piece as the original code assembles them."""
    ids = [1]
    for number, piece in enumerate(text.split("<image>")):
        ids += [IMAGE] * (number > 0)
        for part in filter(None, re.split("(</s>)", piece)):
            ids += [2] if part == "</s>" else model.encode(part)
    return ids


def test_legacy_ids_are_those_of_sentencepiece_on_any_text():
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = FIXTURES / GOLDEN_NAMES[0]
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = convert_llama_tokenizer(folder, IMAGE)
    draw = random.Random(0)
    bits = ["<image>", "</s>", "\n", " ", "  ", "Hello", "the cat", "图", "🙂", "USER:", "\t"]
    for _ in range(1000):
        text = "".join(draw.choices(bits, k=draw.randint(1, 8)))
        assert tokenizer(text).input_ids == sentencepiece_ids(model, text), repr(text)


@pytest.mark.parametrize("flag, token", [(True, "▁a"), (False, "a"), (None, "▁a"), ("absent", "▁a")])
def test_legacy_flag_decides_what_follows_the_end_of_a_turn(tmp_path, flag, token):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(FIXTURES / GOLDEN_NAMES[0] / name, tmp_path / name)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"legacy": flag}
    if flag == "absent":
        del config["legacy"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = convert_llama_tokenizer(tmp_path, IMAGE)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("</s>a")) == ["<s>", "</s>", token]


@pytest.mark.parametrize("config", [None, {}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_prompts_begin_with_bos_unless_the_original_says_otherwise(tmp_path, config):
    shutil.copyfile(FIXTURES / GOLDEN_NAMES[0] / "tokenizer.model", tmp_path / "tokenizer.model")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = convert_llama_tokenizer(tmp_path, IMAGE)
    expected = [] if config == {"add_bos_token": False} else ["<s>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a cat").input_ids)[:-2] == [*expected, "▁a"]


def test_without_a_tokenizer(tmp_path):
    with pytest.raises(ConversionError, match="neither tokenizer.model nor tokenizer.json"):
        convert_llama_tokenizer(tmp_path, IMAGE)


def test_placeholder_ids_in_a_tensor(saved):
    ids = saved("<image>" * 256 + "\na", return_tensors="pt").input_ids
    assert torch.equal((ids == IMAGE).sum(), torch.tensor(256))
