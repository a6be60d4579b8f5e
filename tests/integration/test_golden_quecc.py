"""The converted QueCC checkpoint against what the original code computed from the original one."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mqt_llava import QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor
from tests.builders.paths import FIXTURES, QUECC_GOLDEN_NAME


KEYS = [f"q{question}.{image}" for question in range(2) for image in ("landscape", "square")]


class Golden:
    """The converted checkpoint, and the original's inputs and outputs by case."""

    def __init__(self, folder):
        self.folder = FIXTURES / QUECC_GOLDEN_NAME
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.outputs = load_file(self.folder / "golden.safetensors")
        self.cases = {case["key"]: case for case in json.loads((self.folder / "golden.json").read_text())["cases"]}

    def inputs(self, *keys: str):
        images = [Image.open(self.folder / "images" / self.cases[key]["image"]) for key in keys]
        prompts = [self.cases[key]["prompt"] for key in keys]
        return self.processor(images=images, text=prompts, padding=True, return_tensors="pt")

    def visual_tokens(self, inputs) -> list[torch.Tensor]:
        with torch.no_grad():
            return self.model.get_image_features(
                inputs["pixel_values"], inputs["query_input_ids"], inputs["query_attention_mask"]
            ).pooler_output

    def assert_close(self, actual: torch.Tensor, name: str):
        expected = self.outputs[name]
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def golden(converted_quecc):
    return Golden(converted_quecc)


def test_auto_classes(golden):
    assert type(golden.model) is QueCCLlavaForConditionalGeneration
    assert type(golden.processor) is QueCCLlavaProcessor
    assert golden.cases.keys() == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_token_ids(golden, key):
    image_token_id, expected = golden.processor.image_token_id, []
    for token in golden.outputs[f"{key.split('.')[0]}.input_ids"].tolist():
        expected += [image_token_id] * golden.cases[key]["num_visual_tokens"] if token == -200 else [token]
    inputs = golden.inputs(key)
    assert inputs["input_ids"].tolist() == [expected]
    question = golden.processor.tokenizer(golden.cases[key]["question"])["input_ids"]
    assert question[0] == golden.processor.tokenizer.bos_token_id
    assert inputs["query_input_ids"].tolist() == [question]


@pytest.mark.parametrize("key", KEYS)
def test_visual_tokens(golden, key):
    (visual_tokens,) = golden.visual_tokens(golden.inputs(key))
    golden.assert_close(visual_tokens, f"{key}.visual_tokens")


@pytest.mark.parametrize("key", KEYS)
def test_last_logits(golden, key):
    with torch.no_grad():
        logits = golden.model(**golden.inputs(key), logits_to_keep=1).logits[0, -1]
    golden.assert_close(logits[:-1], f"{key}.last_logits")
    assert logits[-1] < logits[:-1].min(), "`<image>` has a row of its own, and is never predicted"


@pytest.mark.parametrize("key", KEYS)
def test_greedy_tokens(golden, key):
    expected = golden.outputs[f"{key}.generated"]
    inputs = golden.inputs(key)
    generated = golden.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    # The original starts from embeddings, so what it returns begins with a lone BOS.
    assert expected[0] == 1
    assert generated[0, inputs["input_ids"].shape[1] :].tolist() == expected[1:].tolist()


def test_batch_of_questions_of_different_lengths(golden):
    """The original outputs are of one prompt at a time."""
    inputs = golden.inputs(*KEYS)
    assert 0 in inputs["query_attention_mask"] and 0 in inputs["attention_mask"]
    for key, visual_tokens in zip(KEYS, golden.visual_tokens(inputs), strict=True):
        golden.assert_close(visual_tokens, f"{key}.visual_tokens")
    with torch.no_grad():
        logits = golden.model(**inputs, logits_to_keep=1).logits[:, -1, :-1]
    for key, row in zip(KEYS, logits, strict=True):
        golden.assert_close(row, f"{key}.last_logits")
    generated = golden.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    for key, row in zip(KEYS, generated[:, inputs["input_ids"].shape[1] :], strict=True):
        assert row.tolist() == golden.outputs[f"{key}.generated"][1:].tolist()
