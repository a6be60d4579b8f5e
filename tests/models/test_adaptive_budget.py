"""The rule that says whether a level suffices, and what a calibrated budget knows of itself."""

import dataclasses
import logging

import pytest
import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from mqt_llava import AdaptiveBudget, MQTLlavaForConditionalGeneration
from mqt_llava.models.adaptive_budget import Promise, best_logprobs, checkpoint_digest
from tests.builders.models import random_model
from tests.builders.prompts import random_inputs


GREEDY = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}


def promised(model, **changes) -> AdaptiveBudget:
    fields = {"levels": [2, 16], "num_probed_tokens": 1, "unended_power": 10.0}
    about = {"checkpoint": checkpoint_digest(model), "max_visual_tokens": 16, "threshold": 0.0, **fields, **changes}
    promise = Promise(risk=0.02, confidence=0.95, num_prompts=500, num_different=3, **about)
    return AdaptiveBudget(confidence=0.0, promise=promise, **fields)


@pytest.fixture
def warnings(caplog):
    """Messages of transformers' loggers, which do not reach pytest by themselves."""
    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield lambda: [record.getMessage() for record in caplog.records if "promises" in record.getMessage()]
    transformers_logging.disable_propagation()


def test_the_least_probability_and_the_least_lead_decide():
    places = torch.tensor([[[0.9, 0.05], [0.5, 0.25]], [[0.4, 0.1], [0.9, 0.05]], [[0.6, 0.39], [0.9, 0.05]]]).log()
    budget, ended = AdaptiveBudget(confidence=0.5, margin=0.25), torch.tensor(True)
    assert budget.suffices(places + 1e-6, ended).tolist() == [True, False, False]
    assert budget.suffices(places[0] + 1e-6, ended) and AdaptiveBudget(confidence=0.5).suffices(places[2], ended)


def test_an_answer_that_goes_on_must_be_more_certain():
    places, has_ended = torch.tensor([[[0.9, 0.05], [0.8, 0.1]]] * 2).log(), torch.tensor([True, False])
    budget = AdaptiveBudget(confidence=0.7, unended_power=2)
    assert budget.confidence_in(places, has_ended).tolist() == pytest.approx([0.8, 0.64])
    assert budget.suffices(places, has_ended).tolist() == [True, False]
    assert AdaptiveBudget(confidence=0.7, unended_power=1).suffices(places, has_ended).all()


def test_what_comes_after_the_end_of_an_answer_is_certain():
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 2)
    going, ended = best_logprobs(logits, torch.tensor([False, True]))
    assert torch.allclose(going, logits[0].log_softmax(-1)[[2, 1]])
    assert AdaptiveBudget(confidence=1.0, margin=1.0).suffices(ended[None], torch.tensor(True))


def test_as_a_dict():
    fields = {"levels": [1, 4], "confidence": 0.5, "margin": 0.1, "num_probed_tokens": 2, "unended_power": 3.0}
    assert AdaptiveBudget(**fields).to_dict() == {**fields, "promise": None}
    assert AdaptiveBudget(**AdaptiveBudget(**fields).to_dict()) == AdaptiveBudget(**fields)


class TestPromise:
    def test_goes_with_the_saved_model_and_is_shown(self, tiny_model, tmp_path, warnings):
        budget = promised(tiny_model)
        tiny_model.generation_config.adaptive_budget = budget.to_dict()
        tiny_model.save_pretrained(tmp_path)
        assert "risk=0.02, confidence=0.95, num_prompts=500, num_different=3" in repr(budget)
        loaded = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert AdaptiveBudget(**loaded.generation_config.adaptive_budget) == budget
        outputs = loaded.generate(**random_inputs([16]), num_visual_tokens="auto", **GREEDY)
        assert outputs.visual_token_level.tolist() == [2] and not warnings()  # these are the same weights

    def test_other_weights_are_warned_about_once(self, tiny_model, warnings):
        budget = promised(random_model(seed=3))
        for _ in range(2):
            tiny_model.generate(**random_inputs([16]), num_visual_tokens=budget, **GREEDY)
        (message,) = warnings()
        assert "calibrated for other weights" in message

    def test_sampled_answers_are_warned_about(self, tiny_model, warnings):
        kwargs = {**GREEDY, "do_sample": True}
        tiny_model.generate(**random_inputs([16]), num_visual_tokens=promised(tiny_model), **kwargs)
        assert ["holds for greedy answers" in message for message in warnings()] == [True]

    def test_another_m_is_refused(self, tiny_model):
        config = GenerationConfig(adaptive_budget=promised(tiny_model, max_visual_tokens=64).to_dict())
        with pytest.raises(ValueError, match="calibrated for a model of M = 64, but this one has 16"):
            tiny_model.generate(**random_inputs([16]), num_visual_tokens="auto", generation_config=config)

    @pytest.mark.parametrize(
        "change",
        [{"levels": [4, 16]}, {"confidence": 0.1}, {"margin": 0.1}, {"num_probed_tokens": 2}, {"unended_power": 1.0}],
        ids=str,
    )
    def test_another_budget_is_refused(self, tiny_model, change):
        budget = promised(tiny_model)
        with pytest.raises(ValueError, match=r"`promise` was made for another budget: `levels=\[2, 16\], confidence"):
            dataclasses.replace(budget, **change)
        assert dataclasses.replace(budget, promise=None, **change).promise is None

    @pytest.mark.parametrize("promise", ["2%", {"risk": 0.02}], ids=str)
    def test_what_is_none(self, promise):
        with pytest.raises(TypeError, match="`promise` is .*, but must be a `Promise`, or a dict of checkpoint, conf"):
            AdaptiveBudget(promise=promise)


def test_a_digest_tells_weights_but_not_dtypes():
    model = random_model()
    digest = checkpoint_digest(model)
    assert digest == checkpoint_digest(random_model().to(torch.bfloat16)) != checkpoint_digest(random_model(seed=3))
    next(model.parameters()).data.view(-1)[0] += 1
    assert digest != checkpoint_digest(model)
