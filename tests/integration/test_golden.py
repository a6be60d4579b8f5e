"""The converted checkpoints against what the original code computed from the original ones."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from tests.builders.paths import FIXTURES, GOLDEN_NAMES


QUESTION_KEYS = [f"q{question}.m{m}" for question in range(3) for m in (1, 2, 7, 16, 64, 255, 256)]
KEYS = [*QUESTION_KEYS, "multiturn.m36", "twoimages.m9", "textonly"]


class Golden:
    """A converted checkpoint, and the original's inputs and outputs by case."""

    def __init__(self, name: str, folder):
        self.folder = FIXTURES / name
        self.model = MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = MQTLlavaProcessor.from_pretrained(folder)
        self.outputs = load_file(self.folder / "golden.safetensors")
        spec = json.loads((self.folder / "golden.json").read_text())
        self.cases = {case["key"]: case for case in spec["cases"]} | {
            key: spec[key.split(".")[0]] for key in ("multiturn.m36", "twoimages.m9", "textonly", "loss")
        }

    def image(self, name: str) -> Image.Image:
        return Image.open(self.folder / "images" / name)

    def inputs(self, key: str, **kwargs):
        case = self.cases[key]
        images = [self.image(name) for name in case.get("images", [case.get("image")]) if name]
        return self.processor(
            images=images or None,
            text=case["prompt"],
            return_tensors="pt",
            **{"num_visual_tokens": case.get("num_visual_tokens"), **kwargs},
        )

    def original_ids(self, key: str) -> torch.Tensor:
        """The original's ids, where -200 stands for an image."""
        return self.outputs[f"{key.split('.')[0]}.input_ids"]


@pytest.fixture(scope="module", params=GOLDEN_NAMES, ids=["legacy", "legacy_false"])
def golden(request, converted):
    return Golden(request.param, converted[request.param])


@pytest.mark.parametrize("key", [*KEYS, "loss"])
def test_token_ids(golden, key):
    image_token_id = golden.processor.image_token_id
    ids = golden.inputs(key, num_visual_tokens=1)["input_ids"][0]
    torch.testing.assert_close(torch.where(ids == image_token_id, -200, ids), golden.original_ids(key), rtol=0, atol=0)
    m = golden.cases[key].get("num_visual_tokens")
    if m is not None:
        expected = []
        for token in golden.original_ids(key).tolist():
            expected += [image_token_id] * m if token == -200 else [token]
        assert golden.inputs(key)["input_ids"][0].tolist() == expected


@pytest.mark.parametrize("key", KEYS)
def test_last_logits(golden, key):
    expected = golden.outputs[f"{key}.last_logits"]
    with torch.no_grad():
        logits = golden.model(**golden.inputs(key), logits_to_keep=1).logits[0, -1]
    logits, never = logits[:-1], logits[-1]  # `<image>` has a row of its own, and is never predicted
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5
    assert never < expected.min()


@pytest.mark.parametrize("key", QUESTION_KEYS)
def test_greedy_tokens(golden, key):
    expected = golden.outputs[f"{key}.generated"]
    inputs = golden.inputs(key)
    generated = golden.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    # The original starts from embeddings, so what it returns begins with a lone BOS.
    assert generated[0, inputs["input_ids"].shape[1] :].tolist() == expected[1:].tolist()


@pytest.mark.parametrize("key", QUESTION_KEYS)
def test_greedy_tokens_of_a_resized_prompt(golden, key):
    """One prompt at the default m, re-sized by `generate`."""
    inputs = golden.inputs(key, num_visual_tokens=None)
    assert inputs["visual_token_counts"].tolist() == [256]
    m = golden.cases[key]["num_visual_tokens"]
    generated = golden.model.generate(**inputs, max_new_tokens=12, do_sample=False, num_visual_tokens=m)
    expected = golden.outputs[f"{key}.generated"][1:]
    assert generated[0, inputs["input_ids"].shape[1] :].tolist() == expected.tolist()


def test_visual_tokens(golden):
    keys = [key for key in golden.outputs if key.endswith(".visual_tokens")]
    assert keys
    for key in keys:
        expected = golden.outputs[key].reshape(-1, golden.model.config.text_config.hidden_size)
        case = golden.cases[key.removesuffix(".visual_tokens")]
        pixel_values = golden.processor(images=golden.image(case["image"]), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = golden.model.get_image_features(pixel_values, [len(expected)])
        error = (features.pooler_output[0] - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5


@pytest.mark.parametrize("name", ["square", "landscape", "portrait", "rgba", "gray", "palette", "tiny"])
def test_pixel_values(golden, name):
    pixel_values = golden.processor(images=golden.image(f"{name}.png"), return_tensors="pt")["pixel_values"]
    expected = golden.outputs[f"pixel_values_every_7th.{name}.png"]
    # Identical pixels; normalising rounds differently in the last bit of float32.
    torch.testing.assert_close(pixel_values[0, :, ::7, ::7], expected, rtol=0, atol=1e-6)


def test_loss(golden):
    inputs = golden.inputs("loss")
    ids, labels = golden.outputs["loss.input_ids"], golden.outputs["loss.labels"]
    m = golden.cases["loss"]["num_visual_tokens"]
    image = ids.tolist().index(-200)
    labels = torch.cat([labels[:image], torch.full((m,), -100), labels[image + 1 :]])[None]
    with torch.no_grad():
        loss = golden.model(**inputs, labels=labels).loss
    torch.testing.assert_close(loss, golden.outputs[f"loss.m{m}"][0], rtol=0, atol=1e-6)
