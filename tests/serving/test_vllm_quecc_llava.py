"""vLLM's engine against transformers for QueCC-LLaVA: which question each image is encoded for, request by request."""

from itertools import product
from types import SimpleNamespace

import pytest

from tests.builders.paths import FIXTURES
from tests.serving.conftest import engine, start_process
from tests.serving.serving_cases import Case, ask_transformers, chat, widen_heads
from tests.serving.test_openai_server import Server, ask, conversation


pytestmark = pytest.mark.vllm
ORIGINAL = FIXTURES / "quecc_original_tiny"
NUMBER = 36  # visual tokens of an image
LANDSCAPE, SQUARE = IMAGES = [ORIGINAL / "images" / f"{name}.png" for name in ("landscape", "square")]
QUESTIONS = [
    "What is unusual about this image?",
    "List all objects on the desk.\nAnswer briefly.",
    "Wie groß ist die 猫 🙂, and how many of them are  there ?",
    "Tell me everything, " + "and more of it, " * 12 + "please.",
]
SYSTEM = chat("").prompt.partition("USER:")[0]
ANSWERED = SYSTEM + "USER: <image>\nWhat is it? ASSISTANT: A shoe.</s>USER: {} ASSISTANT:"
CASES = [
    *(chat(question, image) for image, question in product(IMAGES, QUESTIONS)),
    chat("What are they?", *IMAGES),
    Case("USER: Here <image> and <image>\nHow many? ASSISTANT:", (SQUARE, SQUARE)),
    Case("<image>What is it?", (SQUARE,)),
    # The first question holds for the first image, and each image has that of its own turn.
    Case(ANSWERED.format("Of which colour?"), (LANDSCAPE,)),
    Case(ANSWERED.format("<image>\nAnd this?"), (LANDSCAPE, SQUARE)),
    Case(ANSWERED.format("<image>\nAnd again?"), (LANDSCAPE, LANDSCAPE)),
    Case("USER: Hello ASSISTANT: Hi.</s>USER: <image>\nWhat is it? ASSISTANT:", (LANDSCAPE,)),
    Case("USER: <image>\nWhat </s> is it? ASSISTANT:", (SQUARE,)),
    Case(ANSWERED.format("Of which colour?"), (LANDSCAPE,), query="Of which colour?"),
    Case(ANSWERED.format("<image>\nAnd this?"), (LANDSCAPE, SQUARE), query=("What is it?", "Is it large?")),
    Case("USER: <image> ASSISTANT:", (SQUARE,), query="Of which colour?"),
    chat("Is there any footwear?"),
]
# Images and questions that CASES hold, each but once.
NUM_ENCODED = 8 + 2 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1
# In chunks, and with nothing kept.
SMALL = {"max_num_batched_tokens": 48, "max_num_seqs": 6, "enable_chunked_prefill": True}
SMALL |= {"mm_processor_cache_gb": 0, "enable_prefix_caching": False}


@pytest.fixture(scope="module")
def quecc(tmp_path_factory):
    """The original checkpoint, converted, with heads of 96."""
    from mqt_llava.conversion.convert_quecc_llava import main

    folder = tmp_path_factory.mktemp("converted") / "quecc"
    main(["--input", str(ORIGINAL), "--output", str(folder)])
    widen_heads(folder, times=4)
    return folder


@pytest.fixture(scope="module")
def theirs(quecc):
    with start_process() as process:
        return process.submit(ask_transformers, quecc, CASES).result()


@pytest.fixture(scope="module")
def ask_eager(quecc):
    with engine(quecc) as ask_eager:
        yield ask_eager


def check(answers, theirs):
    assert len(answers) == len(theirs) == len(CASES)
    for case, ours, expected in zip(CASES, answers, theirs):
        assert ours == expected, case


def test_tokens_and_prompts_are_those_of_transformers(ask_eager, theirs):
    """All in one batch; an image is encoded once for a question, and again for another."""
    answers, encoded = ask_eager(CASES)
    check(answers, theirs)
    assert encoded == [NUMBER] * NUM_ENCODED
    again, encoded = ask_eager(CASES)
    check(again, theirs)
    assert encoded == []


@pytest.mark.parametrize("kwargs", [{"enforce_eager": False}, SMALL], ids=["compiled", "chunked"])
def test_other_engines(quecc, theirs, kwargs):
    """The chunks hold fewer tokens than the questions of a batch, so that these are split over passes."""
    with engine(quecc, **kwargs) as ask_other:
        check(ask_other(CASES)[0], theirs)


def test_the_question_makes_a_difference(theirs):
    """The prompts are the same, the questions are not."""
    plain, asked = (theirs[index] for index in (12, 17))
    assert plain.prompt_ids == asked.prompt_ids and plain.ids != asked.ids


@pytest.mark.parametrize(
    "case, kwargs, message",
    [
        (
            CASES[0],
            {"num_visual_tokens": 4},
            "'num_visual_tokens'.` is 4, but every image gets 36.*`kernel_size` fixes",
        ),
        (CASES[0], {"num_visual_tokens": [36]}, "is .36., but every image gets 36"),
        (CASES[0], {"query": ["a?", "b?"]}, "'query'.` is .*, but must be .* one question for each of the 1 images"),
        (CASES[0], {"query": " "}, "'query'.` is ' ', but must be a question"),
        (CASES[0], {"query": "a" + " a" * 1999}, "has 2001 tokens, but must have 1..1024"),
        (CASES[0], {"question": "a?"}, "has 'question', but only 'query' or 'num_visual_tokens' is allowed"),
        (Case("USER: <image> ASSISTANT:", (SQUARE,)), {}, "There is no question behind <image>"),
        (Case("USER: <image>\na? ASSISTANT:", (SQUARE,) * 2), {}, "has 1 <image> tokens, but 2 images were passed"),
    ],
)
def test_bad_requests_are_refused_and_the_engine_goes_on(ask_eager, theirs, case, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ask_eager([case], [kwargs])
    assert ask_eager(CASES[:1], [{"num_visual_tokens": NUMBER}])[0] == theirs[:1]


def test_over_http(quecc, theirs):
    import openai

    with Server(quecc, "--trust-request-mm-kwargs") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for index in (0, 1, 11, 12, 16, len(CASES) - 1):
            case, answer = CASES[index], theirs[index]
            extra_body = {} if case.images else {"add_special_tokens": True}
            if case.query:
                extra_body["mm_processor_kwargs"] = {"query": case.query}
            completion = ask(client, conversation(case), extra_body=extra_body)
            assert completion.prompt_token_ids == answer.prompt_ids, case
            assert completion.choices[0].token_ids == answer.ids, case
        with pytest.raises(openai.BadRequestError, match="`kernel_size` fixes their number"):
            ask(client, conversation(CASES[0]), 4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pipeline_parallel_size": 2}, "`pipeline_parallel_size` is 2, but must be 1"),
        ({"tensor_parallel_size": 8}, "`tensor_parallel_size` is 8, but must be at most 4"),
        ({"lora_config": object()}, "`enable_lora` is set"),
        ({"mm_encoder_only": True}, "`mm_encoder_only` is set"),
        ({}, None),
    ],
)
def test_engines_that_cannot_read_questions_are_refused(settings, message):
    from mqt_llava.serving.vllm_quecc_llava import refuse_settings

    settings = {"pipeline_parallel_size": 1, "tensor_parallel_size": 4, "lora_config": None, **settings}
    multimodal_config = SimpleNamespace(mm_encoder_only=settings.get("mm_encoder_only", False))
    model_config = SimpleNamespace(get_total_num_kv_heads=lambda: 4, multimodal_config=multimodal_config)
    config = SimpleNamespace(parallel_config=SimpleNamespace(**settings), model_config=model_config)
    config.lora_config = settings["lora_config"]
    if message is None:
        return refuse_settings(config)
    with pytest.raises(ValueError, match=message):
        refuse_settings(config)


def test_questions_that_are_read_at_once():
    from mqt_llava.serving.vllm_quecc_llava import runs_within

    for lengths, runs in (([3, 3, 2, 4], [3, 1]), ([9], [1]), ([2, 9, 2], [1, 1, 1]), ([1] * 9, [8, 1])):
        slices = list(runs_within(lengths, 9 if len(lengths) == 4 else 8))
        assert [len(lengths[run]) for run in slices] == runs
        assert sum((lengths[run] for run in slices), []) == lengths
