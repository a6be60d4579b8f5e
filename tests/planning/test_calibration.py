"""Thresholds that are found on prompts, with right answers and without, and what `generate` then does with them."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig
from transformers.utils import logging as transformers_logging

from mqt_llava import AdaptiveBudget, MQTLlavaForConditionalGeneration
from mqt_llava.planning.calibration import THRESHOLDS, Calibration, calibrate
from mqt_llava.planning.calibration_report import report_calibration, save_report
from tests.builders.chats import assistant, tokenize_chat, user
from tests.builders.models import count_calls
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


class TestPromise:
    """Of prompts alone, by agreement with the answer at M."""

    EASY = {"risk": 0.3, "confidence": 0.8, "num_probed_tokens": 3, "batch_size": 5}

    @pytest.fixture
    def prompts(self, questions):
        return [{**row, "messages": row["messages"][:1]} for row in questions]

    def test_loosest_threshold_that_keeps_the_risk(self):
        confidence = torch.linspace(0, 1, 1000)[:, None].expand(-1, 2)
        scores = (confidence > torch.tensor([0.3, -1.0])).float()  # below 0.3, one token is too few
        calibration = Calibration([1, 16], scores, confidence.clone())
        budget = calibration.choose_promised(0.1, 0.95, checkpoint="abc")
        promise = budget.promise
        assert promise.num_different == sum(budget.confidence <= value < 0.3 for value in confidence[:, 0].tolist())
        # 85 of 1000 have a p-value of 0.06 for a risk of 10%, 84 one of 0.048.
        assert 0.3 - 0.085 < budget.confidence < 0.3 and budget.confidence in THRESHOLDS
        assert (promise.num_prompts, promise.checkpoint, promise.max_visual_tokens) == (1000, "abc", 16)
        assert calibration.num_missing is None

    @pytest.mark.parametrize("num_wrong, missing", [(1, 165), (10, None)])
    def test_m_where_nothing_can_be_promised(self, num_wrong, missing):
        """149 prompts, of which some are answered wrongly at one token with all confidence."""
        scores = torch.ones(149, 2)
        scores[:num_wrong, 0] = 0
        calibration = Calibration([1, 16], scores, torch.ones(149, 2))
        assert calibration.choose_promised(0.02, 0.95) == AdaptiveBudget([16])
        assert calibration.num_missing == pytest.approx(missing, abs=8)  # 314 keep it with 2 that fail

    def test_no_answers_are_needed(self, checkpoint, prompts, questions, tmp_path):
        model, processor = checkpoint
        calibration = calibrate(model, processor, prompts, **self.EASY, save_to=tmp_path)
        saved = GenerationConfig.from_pretrained(tmp_path).adaptive_budget
        assert AdaptiveBudget(**saved) == calibration.budget and calibration.budget.promise.num_prompts == len(prompts)
        assert calibration.scores[:, -1].all() and calibration.ids and len(calibration.texts) == len(prompts)
        with_answers = calibrate(model, processor, questions, **self.EASY)
        assert with_answers.budget == calibration.budget  # answers are not looked at

        for row, stop, texts in zip(prompts, calibration.stops(calibration.budget.confidence), calibration.texts):
            inputs = prompt(processor, row)
            outputs = model.generate(
                **inputs, num_visual_tokens="auto", max_new_tokens=64, return_dict_in_generate=True
            )
            assert outputs.visual_token_level.item() == calibration.levels[stop]
            answer = outputs.sequences[0, inputs["input_ids"].shape[1] :]
            assert processor.decode(answer, skip_special_tokens=True) == texts[stop]

    def test_agreement_of_ones_own(self, checkpoint, prompts):
        calibration = calibrate(*checkpoint, prompts, **self.EASY, score=lambda answer, at_m: len(answer) > 0)
        assert calibration.budget.confidence == 0.0 and calibration.at(0.0).accuracy == 1
        calibration = calibrate(*checkpoint, prompts, **{**self.EASY, "risk": 0.1}, score=lambda answer, at_m: False)
        assert calibration.budget == AdaptiveBudget([16]) and calibration.num_missing > 0
        assert checkpoint[0].generation_config.adaptive_budget["levels"] == [16]
        with pytest.raises(ValueError, match="`score` must say True or False"):
            calibrate(*checkpoint, prompts, **self.EASY, score=lambda answer, at_m: 0.5)

    def test_killed_and_resumed(self, checkpoint, prompts, tmp_path, monkeypatch):
        model, processor = checkpoint
        expected = calibrate(model, processor, prompts, **self.EASY)
        log, generate, calls = tmp_path / "log.jsonl", model.generate, []

        def stop_in_the_third_batch(**kwargs):
            calls.append(kwargs)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return generate(**kwargs)

        monkeypatch.setattr(model, "generate", stop_in_the_third_batch)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, processor, prompts, **self.EASY, log=log)
        with log.open("a") as file:
            file.write('{"texts": [["a')  # as a kill tears a line
        calls.clear()
        images = count_calls(model.model.vision_tower)
        resumed = calibrate(model, processor, prompts, **self.EASY, log=log)
        num_batches = -(-len(prompts) // 5)
        assert len(calls) == 3 * (num_batches - 2) and len(images) == num_batches - 2  # an image is encoded once
        assert resumed.budget == expected.budget and torch.equal(resumed.confidence, expected.confidence)
        assert resumed.texts == expected.texts
        calls.clear()
        calibrate(
            model, processor, prompts, **{**self.EASY, "risk": 0.4}, log=log
        )  # another promise, the same answers
        assert not calls
        with pytest.raises(ValueError, match="answers of another calibration: levels, questions differ"):
            calibrate(model, processor, prompts[1:], **self.EASY, levels=[2, 16], log=log)

    def test_a_report_for_a_person(self, checkpoint, prompts, tmp_path):
        pytest.importorskip("matplotlib")
        calibration = calibrate(*checkpoint, prompts, **self.EASY)
        calibration.budget = AdaptiveBudget([1, 4, 16], 0.0)
        found = report_calibration(calibration)
        assert found["share_at_levels"] == {"1": 1.0, "4": 0.0, "16": 0.0} and found["chosen"] == found["fixed"][0]
        differing = [id for id, texts in zip(calibration.ids, calibration.texts) if texts[0] != texts[-1]]
        assert [prompt["id"] for prompt in found["too_early"]] == differing != []
        assert found["too_early"][0]["answer"] != found["too_early"][0]["answer_at_max"]
        calibration.budget, calibration.num_missing = AdaptiveBudget([16]), 87
        save_report(calibration, tmp_path / "new")
        found = json.loads((tmp_path / "new" / "calibration.json").read_text())
        assert found["chosen"] == [16, 1] and found["too_early"] == [] and found["num_missing"] == 87
        assert Image.open(tmp_path / "new" / "calibration.png").size == (1350, 600)


class TestBadInput:
    def test_prompts(self, checkpoint, questions):
        with pytest.raises(ValueError, match="`prompts` is empty"):
            calibrate(*checkpoint, [])
        text = {"id": "text", "messages": questions[0]["messages"]}
        with pytest.raises(ValueError, match=r"must hold questions about images; \['text'\] are not"):
            calibrate(*checkpoint, [text])
        alone = {**questions[0], "messages": questions[0]["messages"][:1]}
        with pytest.raises(ValueError, match="no message is an answer"):
            calibrate(*checkpoint, [alone], target=0.1)

    @pytest.mark.parametrize("repeats", [1, 20])
    def test_too_few_prompts_or_all_alike(self, checkpoint, questions, repeats):
        with pytest.raises(ValueError, match=f"holds {len(questions)} different prompts, but it takes 149 to promise"):
            calibrate(*checkpoint, questions * repeats)
        with pytest.raises(ValueError, match="holds 1 different prompts, but"):
            calibrate(*checkpoint, questions[:1] * 200)

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"risk": 0}, "`risk` is 0, but must be a number between 0 and 1"),
            ({"risk": 1.0}, "`risk` is 1.0"),
            ({"confidence": 1}, "`confidence` is 1, but must be"),
            ({"confidence": "95%"}, "`confidence` is '95%'"),
            ({"target": 2}, "`target` is 2"),
            ({"levels": [1, 4]}, r"`levels` is \[1, 4\], but must end with 16, M"),
        ],
        ids=str,
    )
    def test_numbers(self, checkpoint, questions, kwargs, message):
        with pytest.raises(ValueError, match=message):
            calibrate(*checkpoint, questions, **kwargs)

    def test_answers_that_sampling_makes_random(self, checkpoint, questions, caplog):
        model, processor = checkpoint
        model.generation_config.do_sample = True
        transformers_logging.enable_propagation()
        try:
            calibrate(model, processor, questions[:2], risk=0.9, confidence=0.5)
        finally:
            transformers_logging.disable_propagation()
            model.generation_config.do_sample = False
        assert "greedy answers are calibrated" in caplog.text
