"""Measuring how long a model takes, and what is made of it."""

import json
from dataclasses import replace

import pytest
import torch

from mqt_llava.planning import Curve, Profile, largest_num_visual_tokens, measure_profile, profile, request_cost
from tests.builders.configs import tiny_config
from tests.builders.models import random_model
from tests.builders.random_configs import random_llava_config, random_mqt_config, random_quecc_config


def test_a_profile_predicts_and_limits(tmp_path):
    model = random_model().train()
    measured = measure_profile(model)
    assert model.training
    assert (measured.dtype, measured.device) == ("float32", "cpu")
    request = {"text_tokens": 8, "new_tokens": 5}
    times = [measured.seconds(request_cost(model.config, num_visual_tokens=m, **request)) for m in range(1, 17)]
    assert times == sorted(times)
    largest = largest_num_visual_tokens(model.config, seconds=times[7], profile=measured, **request)
    assert largest >= 8 and times[largest - 1] <= times[7] and (largest == 16 or times[largest] > times[7])
    with pytest.raises(ValueError, match="`seconds` is"):
        largest_num_visual_tokens(model.config, seconds=times[0] / 2, profile=measured, **request)

    measured.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == measured


def test_more_images_and_longer_answers_take_longer():
    config = tiny_config()
    measured = measure_profile(config)

    def seconds(**request):
        return measured.seconds(request_cost(config, **{"text_tokens": 8, **request}))

    one_token = seconds()
    steps = [seconds(new_tokens=new_tokens) - one_token for new_tokens in (2, 101)]
    assert steps[1] >= 100 * 0.99 * steps[0] > 0
    assert seconds(num_images=40) > seconds()


@pytest.mark.parametrize(
    "config", [random_mqt_config(5), random_mqt_config(6), random_llava_config(3)], ids=("gpt2", "gpt_neox", "llava")
)
def test_other_models_are_measured_from_their_configuration(config):
    measured = measure_profile(config, device="cpu", dtype=torch.bfloat16)
    assert measured.dtype == "bfloat16"
    one, three = (request_cost(config, text_tokens=9, new_tokens=n, dtype=torch.bfloat16) for n in (1, 3))
    assert measured.seconds(three) > measured.seconds(one)
    with pytest.raises(ValueError, match="bfloat16"):
        measured.seconds(request_cost(config, text_tokens=9, dtype=torch.float32))


def test_a_question_takes_its_time():
    config = random_quecc_config(4)
    # A curve that rises, which one measured on a busy machine need not.
    measured = replace(measure_profile(config), prefill=Curve.through([(10**5, 1.0), (10**9, 2.0)]))

    def seconds(query_tokens):
        return measured.seconds(request_cost(config, text_tokens=9, query_tokens=query_tokens))

    prefill = request_cost(config, text_tokens=9, query_tokens=200).flops.question
    assert seconds(1) > measured.prefill.seconds[0] and seconds(200) > seconds(1)
    assert seconds(200) - seconds(1) == pytest.approx(measured.prefill(prefill) - measured.prefill(0))


def test_slow_models_are_not_timed_at_every_length(monkeypatch):
    monkeypatch.setattr(profile, "SLOW", 0.0)
    measured = measure_profile(random_model())
    assert len(measured.prefill.flops) == 1


def test_curves_are_straight_between_points_and_never_fall():
    curve = Curve.through([(300, 5.0), (100, 1.0), (200, 3.0), (250, 2.0)])
    assert curve.seconds == (1.0, 3.0, 3.0, 5.0)
    assert [curve(flops) for flops in (0, 100, 150, 225, 275, 300, 600)] == [1, 1, 2, 3, 4, 5, 10]
    assert Curve.through([(7, 2.0), (7, 1.0)])(7) == 2.0


def test_a_profile_is_of_one_model_and_no_batch():
    config, other = tiny_config(), tiny_config(max_visual_tokens=4)
    measured = measure_profile(config)
    with pytest.raises(ValueError, match="bytes of weights"):
        measured.seconds(request_cost(other, text_tokens=5))
    with pytest.raises(ValueError, match="batch size 2"):
        measured.seconds(request_cost(config, text_tokens=5, batch_size=2))


def test_what_cannot_be_measured(tmp_path):
    with pytest.raises(ValueError, match="`device` and `dtype` are for a configuration"):
        measure_profile(random_model(), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="'mamba'"):
        measure_profile(tiny_config(text_config={"model_type": "mamba", "vocab_size": 100}))
    for content in ({}, [], {"images": 1}):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="other.json holds no profile"):
            Profile.load(tmp_path / "other.json")
