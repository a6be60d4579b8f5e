"""The converted checkpoints of both models against what the original code computed from the original ones."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mqt_llava import (
    MQTLlavaForConditionalGeneration,
    MQTLlavaProcessor,
    QueCCLlavaForConditionalGeneration,
    QueCCLlavaProcessor,
)
from tests.builders.both import image_inputs
from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME


QUESTIONS = [f"q{question}.m{m}" for question in range(3) for m in (1, 2, 7, 16, 64, 255, 256)]
QUECC_QUESTIONS = [f"q{question}.{image}" for question in range(2) for image in ("landscape", "square")]
OTHERS = ["multiturn.m36", "twoimages.m9", "textonly"]


def each(keys: list[str], quecc_keys: list[str] = QUECC_QUESTIONS):
    """These cases of the checkpoints of MQT-LLaVA, and those of QueCC-LLaVA's."""
    pairs = [(name, key) for name in GOLDEN_NAMES for key in keys] + [(QUECC_GOLDEN_NAME, key) for key in quecc_keys]
    return pytest.mark.parametrize("golden, key", pairs, indirect=["golden"])


class Golden:
    """A converted checkpoint, and the original's inputs and outputs by case."""

    def __init__(self, name: str, folder):
        self.folder = FIXTURES / name
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.outputs = load_file(self.folder / "golden.safetensors")
        spec = json.loads((self.folder / "golden.json").read_text())
        self.cases = {case["key"]: case for case in spec["cases"]} | {
            key: spec[name] for key in (*OTHERS, "loss") if (name := key.split(".")[0]) in spec
        }

    def image(self, name: str) -> Image.Image:
        return Image.open(self.folder / "images" / name)

    def inputs(self, *keys: str, **kwargs):
        cases = [self.cases[key] for key in keys]
        names = [name for case in cases for name in case.get("images", [case.get("image")]) if name]
        return self.processor(
            images=[self.image(name) for name in names] or None,
            text=[case["prompt"] for case in cases],
            padding=True,
            return_tensors="pt",
            **{"num_visual_tokens": cases[0].get("num_visual_tokens"), **kwargs},
        )

    @torch.no_grad()
    def last_logits(self, inputs) -> torch.Tensor:
        return self.model(**inputs, logits_to_keep=1).logits[:, -1]

    def answers(self, inputs, **kwargs) -> list[list[int]]:
        generated = self.model.generate(**inputs, max_new_tokens=12, do_sample=False, **kwargs)
        return generated[:, inputs["input_ids"].shape[1] :].tolist()

    def original_answer(self, key: str) -> list[int]:
        bos, *answer = self.outputs[f"{key}.generated"].tolist()
        assert bos == 1  # the original starts from embeddings, so what it returns begins with a lone BOS
        return answer

    @torch.no_grad()
    def visual_tokens(self, inputs) -> list[torch.Tensor]:
        return self.model.get_image_features(**image_inputs(inputs)).pooler_output

    def assert_close(self, actual: torch.Tensor, name: str):
        expected = self.outputs[name]
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden(request, converted, converted_quecc):
    return Golden(request.param, {**converted, QUECC_GOLDEN_NAME: converted_quecc}[request.param])


@pytest.mark.parametrize("golden", [*GOLDEN_NAMES, QUECC_GOLDEN_NAME], indirect=True)
def test_auto_classes(golden):
    classes = (MQTLlavaForConditionalGeneration, MQTLlavaProcessor)
    if golden.folder.name == QUECC_GOLDEN_NAME:
        classes = (QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor)
        assert golden.cases.keys() == set(QUECC_QUESTIONS)
    assert (type(golden.model), type(golden.processor)) == classes


@each([*QUESTIONS, *OTHERS, "loss"])
def test_token_ids(golden, key):
    case, image_token_id, expected = golden.cases[key], golden.processor.image_token_id, []
    for token in golden.outputs[f"{key.split('.')[0]}.input_ids"].tolist():
        expected += [image_token_id] * case["num_visual_tokens"] if token == -200 else [token]
    inputs = golden.inputs(key)
    assert inputs["input_ids"].tolist() == [expected]
    if golden.folder.name == QUECC_GOLDEN_NAME:
        question = golden.processor.tokenizer(case["question"])["input_ids"]
        assert question[0] == golden.processor.tokenizer.bos_token_id
        assert inputs["query_input_ids"].tolist() == [question]


@each([*QUESTIONS, *OTHERS])
def test_last_logits(golden, key):
    (logits,) = golden.last_logits(golden.inputs(key))
    golden.assert_close(logits[:-1], f"{key}.last_logits")
    assert logits[-1] < logits[:-1].min(), "`<image>` has a row of its own, and is never predicted"


@each(QUESTIONS)
def test_greedy_tokens(golden, key):
    assert golden.answers(golden.inputs(key)) == [golden.original_answer(key)]


@each(QUESTIONS, [])
def test_greedy_tokens_of_a_resized_prompt(golden, key):
    """One prompt at the default m, re-sized by `generate`."""
    inputs = golden.inputs(key, num_visual_tokens=None)
    assert inputs["visual_token_counts"].tolist() == [256]
    m = golden.cases[key]["num_visual_tokens"]
    assert golden.answers(inputs, num_visual_tokens=m) == [golden.original_answer(key)]


@each(["q0.m7", "q0.m256"])
def test_visual_tokens(golden, key):
    (visual_tokens,) = golden.visual_tokens(golden.inputs(key))
    golden.assert_close(visual_tokens, f"{key}.visual_tokens")


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


@pytest.mark.parametrize("golden", [QUECC_GOLDEN_NAME], indirect=True)
def test_batch_of_questions_of_different_lengths(golden):
    """The original outputs are of one prompt at a time."""
    inputs = golden.inputs(*QUECC_QUESTIONS)
    assert 0 in inputs["query_attention_mask"] and 0 in inputs["attention_mask"]
    rows = zip(golden.visual_tokens(inputs), golden.last_logits(inputs), golden.answers(inputs), strict=True)
    for key, (visual_tokens, logits, answer) in zip(QUECC_QUESTIONS, rows, strict=True):
        golden.assert_close(visual_tokens, f"{key}.visual_tokens")
        golden.assert_close(logits[:-1], f"{key}.last_logits")
        assert answer == golden.original_answer(key)
