"""Thresholds that are found on known answers, and what `generate` then does with them."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig

from mqt_llava import AdaptiveBudget, MQTLlavaForConditionalGeneration
from mqt_llava.planning.calibration import Calibration, calibrate
from tests.builders.chats import assistant, tokenize_chat, user
from tests.builders.paths import CHECKPOINT, PICTURES


@pytest.fixture
def calibration():
    """Four questions at 1, 4 and 16 tokens: always right, right from 4, right from 16, never."""
    scores = torch.tensor([[1.0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    confidence = torch.tensor([[0.9, 0.9, 0.9], [0.6, 0.8, 0.9], [0.5, 0.6, 0.9], [0.4, 0.4, 0.4]])
    return Calibration([1, 4, 16], scores, confidence)


@pytest.fixture(scope="module")
def checkpoint():
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def questions():
    """The questions of the demo with their answers."""
    rows = []
    for name, pairs in json.loads((PICTURES / "questions.json").read_text()).items():
        for question, answer in pairs:
            messages = [{"role": "user", "content": question}, assistant(answer)]
            rows.append({"messages": messages, "images": [str(PICTURES / name)]})
    return rows


def prompt(processor, row: dict):
    messages = [user(Image.open(row["images"][0]), row["messages"][0]["content"])]
    return tokenize_chat(processor, messages, add_generation_prompt=True)


def test_points_of_the_curve(calibration):
    # At 0.7 the first stops at 1, the second at 4, the others at 16.
    points = [*calibration.at_levels(), calibration.at(0.0), calibration.at(0.7), calibration.oracle()]
    means = [1, 4, 16, 1, (1 + 4 + 16 + 16) / 4, (1 + 4 + 16 + 1) / 4]
    assert [point.accuracy for point in points] == [0.25, 0.5, 0.75, 0.25, 0.75, 0.75]
    assert [point.mean_tokens for point in points] == means
    tokens = [point.mean_tokens for point in calibration.curve()]
    assert tokens == sorted(tokens) and tokens[0] == 1 and tokens[-1] > tokens[0]


def test_fewest_tokens_within_the_target_are_chosen(calibration):
    assert calibration.choose(0.0).levels == [1, 4, 16]
    assert calibration.choose(0.0).confidence == pytest.approx(0.8)
    assert calibration.choose(0.25).confidence == pytest.approx(0.8)  # below, two of four are wrong for want of tokens
    assert calibration.choose(0.5).confidence == 0.0
    assert calibration.choose(1.0).confidence == 0.0


def test_where_no_threshold_suffices_only_the_highest_level_is_left():
    sure_and_wrong = Calibration([1, 16], torch.tensor([[0.0, 1]]), torch.tensor([[1.0, 1]]))
    assert sure_and_wrong.choose(0.0).levels == [16]


def test_the_curve_is_what_generate_does(checkpoint, questions, tmp_path):
    model, processor = checkpoint
    calibration = calibrate(
        model, processor, questions, target=0.1, num_probed_tokens=3, batch_size=5, save_to=tmp_path
    )
    assert calibration.levels == [1, 4, 16] and calibration.scores.shape == (len(questions), 3)
    saved = GenerationConfig.from_pretrained(tmp_path).adaptive_budget
    assert saved == model.generation_config.adaptive_budget == calibration.choose(0.1).to_dict()

    for confidence in (0.0, 0.6, saved["confidence"]):
        levels, answers = [], []
        for row in questions:
            inputs = prompt(processor, row)
            budget = AdaptiveBudget([1, 4, 16], confidence, num_probed_tokens=3)
            outputs = model.generate(
                **inputs, num_visual_tokens=budget, max_new_tokens=64, do_sample=False, return_dict_in_generate=True
            )
            levels.append(outputs.visual_token_level.item())
            answer = outputs.sequences[0, inputs["input_ids"].shape[1] :]
            answers.append(processor.decode(answer, skip_special_tokens=True))
        point = calibration.at(confidence)
        assert sum(levels) / len(levels) == pytest.approx(point.mean_tokens)
        right = [answer.strip() == row["messages"][1]["content"] for answer, row in zip(answers, questions)]
        assert sum(right) / len(right) == pytest.approx(point.accuracy)


def test_an_explicit_budget_goes_before_the_calibrated_one(checkpoint, questions):
    model, processor = checkpoint
    model.generation_config.adaptive_budget = AdaptiveBudget([2, 16], confidence=0.0).to_dict()
    inputs = prompt(processor, questions[0])
    settings = {"max_new_tokens": 2, "return_dict_in_generate": True}
    assert model.generate(**inputs, num_visual_tokens="auto", **settings).visual_token_level.tolist() == [2]
    budget = AdaptiveBudget([4, 16], confidence=0.0)
    assert model.generate(**inputs, num_visual_tokens=budget, **settings).visual_token_level.tolist() == [4]
    assert "visual_token_level" not in model.generate(**inputs, num_visual_tokens=4, **settings)


def test_bad_datasets_and_targets(checkpoint, questions):
    with pytest.raises(ValueError, match="`dataset` is empty"):
        calibrate(*checkpoint, [])
    text = {"id": "text", "messages": questions[0]["messages"]}
    with pytest.raises(ValueError, match=r"questions about images with their answers; \['text'\] are not"):
        calibrate(*checkpoint, [text])
    with pytest.raises(ValueError, match="`target` is 2"):
        calibrate(*checkpoint, questions, target=2)
