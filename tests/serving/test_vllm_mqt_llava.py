"""vLLM's engine against transformers, request by request."""

import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.serving.conftest import engine
from tests.serving.serving_cases import (
    BUDGETS,
    GOLDEN_KEYS,
    LEGACY_FALSE,
    MOSAICS,
    TINY,
    TINY_CASES,
    Case,
    chat,
    golden_cases,
)


pytestmark = pytest.mark.vllm
ASK = Case("USER: <image>\nList the items. ASSISTANT:", (MOSAICS[0],))
# No room for an image of M visual tokens but the room that is reserved for it.
NARROW = {"max_num_batched_tokens": 8, "max_num_seqs": 4}
INTEGERS = "but must be an integer in 1..16, or a list with one such integer per image."
BAD_NUMBERS = [
    *((number, ValueError, f"is {number}, {INTEGERS}") for number in (0, 17, [0])),
    *((number, TypeError, f"is {number!r}, {INTEGERS}") for number in ("4", "auto", 4.5, True, None, ["4"])),
    ([1, 4], ValueError, f"has 2 entries for 1 image, {INTEGERS}"),
]


@pytest.fixture(scope="module")
def ask():
    with engine(TINY) as ask:
        yield ask


@pytest.fixture(scope="module")
def answers(ask):
    """Of all cases in one batch, and what was encoded for it."""
    return ask(TINY_CASES)


def test_tokens_and_prompts_are_those_of_transformers(answers, expected):
    assert len(TINY_CASES) >= 64
    for case, ours, theirs in zip(TINY_CASES, answers[0], expected["tiny"]):
        assert ours.prompt_ids == theirs.prompt_ids, case
        assert ours.ids == theirs.ids, case


def test_the_number_of_tokens_makes_a_difference(expected):
    by_number = {m: [] for m in BUDGETS}
    for case, answer in zip(TINY_CASES[:64], expected["tiny"]):
        by_number[case.m].append(answer.ids)
    assert by_number[None] == by_number[16] != by_number[4] != by_number[1]


def test_an_image_is_encoded_once(answers):
    """In over seventy requests at four numbers, of which some show two images."""
    assert answers[1] == [16] * 4


def test_an_image_that_is_known_is_not_encoded_again(ask, answers):
    assert ask([ASK, chat("How many are there?", MOSAICS[1], m=4), Case(ASK.prompt, ASK.images, 5)])[1] == []


@pytest.mark.parametrize("number, error, message", BAD_NUMBERS)
def test_bad_numbers_are_refused_and_the_engine_goes_on(ask, expected, number, error, message):
    with pytest.raises(error) as caught:
        ask([ASK], [{"num_visual_tokens": number}])
    assert f"`mm_processor_kwargs['num_visual_tokens']` {message}" in str(caught.value)
    (answer,), _ = ask([TINY_CASES[0]])
    assert answer == expected["tiny"][0]


@pytest.mark.parametrize("kwargs", [{"num_visual_token": 4}, {"images_kwargs": {"num_visual_token": 4}}])
def test_other_keywords_are_refused(ask, kwargs):
    with pytest.raises(ValueError, match="num_visual_token'.*but only 'num_visual_tokens' is allowed"):
        ask([ASK], [kwargs])


def test_keywords_for_images_are_those_of_the_request(ask, expected):
    (answer,), _ = ask([TINY_CASES[2]], [{"images_kwargs": {"num_visual_tokens": 4}}])
    assert answer == expected["tiny"][2]
    with pytest.raises(TypeError, match="`mm_processor_kwargs.'images_kwargs'.` is 4, but must be a dict"):
        ask([ASK], [{"images_kwargs": 4}])


@pytest.mark.parametrize("prompt, num_tokens, num_images", [(ASK.prompt, 1, 2), (ASK.prompt * 2, 2, 1)])
def test_images_and_placeholders_must_be_as_many(ask, prompt, num_tokens, num_images):
    with pytest.raises(ValueError, match=f"has {num_tokens} <image> tokens, but {num_images} images were passed"):
        ask([Case(prompt, ASK.images * num_images)])


def test_what_is_transparent_shows_the_pixels_beneath(ask, expected, tmp_path):
    """The picture of a long list of items, whose black background is transparent: by its alpha, or as a colour."""
    case, path = TINY_CASES[15], tmp_path / "transparent.png"
    picture = Image.open(case.images[0])
    with_alpha = picture.copy()
    with_alpha.putalpha(picture.convert("L").point(lambda value: 255 * (value > 0)))
    for image, options in ((with_alpha, {}), (picture, {"transparency": (0, 0, 0)})):
        image.save(path, **options)
        (answer,), _ = ask([Case(case.prompt, (path,), case.m)])
        assert answer == expected["tiny"][15]


def test_the_engines_own_default(expected):
    """`--mm-processor-kwargs`: for requests that do not say."""
    with engine(TINY, mm_processor_kwargs={"num_visual_tokens": 4}, **NARROW) as ask:
        check_default_of_four(ask, expected)


def test_the_checkpoints_own_default(expected, tmp_path):
    shutil.copytree(TINY, tmp_path / "four")
    path = tmp_path / "four" / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_visual_tokens": 4}))
    with engine(tmp_path / "four", **NARROW) as ask:
        check_default_of_four(ask, expected)


def check_default_of_four(ask, expected):
    one = TINY_CASES[:4]  # at None, 1, 4, 16
    answers, encoded = ask(one)
    assert [case.m for case in one] == BUDGETS and encoded == [16]
    assert answers == [expected["tiny"][index] for index in (2, 1, 2, 3)]


def test_a_checkpoint_whose_tokenizer_is_not_legacy(legacy_false, expected):
    with engine(legacy_false) as ask:
        answers, encoded = ask(golden_cases())
    for case, ours, theirs in zip(golden_cases(), answers, expected["legacy_false"]):
        assert ours.prompt_ids == theirs.prompt_ids, case
        assert ours.ids == theirs.ids, case
    original = load_file(LEGACY_FALSE / "golden.safetensors")
    for key, answer in zip(GOLDEN_KEYS, answers):  # the original returns a lone BOS first
        assert answer.ids[:11] == original[f"{key}.generated"][1:12].tolist(), key
    assert encoded == [256] * len({image for case in golden_cases() for image in case.images})
