"""The OpenAI-compatible server over loopback, with the openai client."""

import asyncio
import base64
import time
from itertools import islice

import pytest

from tests.builders.scripts import load_script
from tests.serving.serving_cases import (
    BUDGETS,
    CHATS,
    ENVIRONMENT,
    MOSAICS,
    NEW_TOKENS,
    QUESTIONS,
    TINY,
    TINY_CASES,
    TWO_NUMBERS,
    Case,
    golden_cases,
)


pytestmark = pytest.mark.vllm
# Pictures with their alpha channel, which our processor drops: vLLM would show transparent ones on white.
FLAGS = ["--trust-request-mm-kwargs", "--media-io-kwargs", '{"image": {"image_mode": "RGBA"}}']
FLAGS += ["--enable-prompt-tokens-details", "--block-size", "32"]


class Server(load_script("benchmarks/servers.py").Server):
    """vLLM's server with a small checkpoint in float32."""

    def __init__(self, checkpoint, *flags):
        own = ["--served-model-name", "mqt", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
        super().__init__(str(checkpoint), [*own, *flags], ENVIRONMENT)

    def num_requests(self) -> float:
        """That run or wait."""
        return sum(self.metrics("num_requests_running", "num_requests_waiting").values())


@pytest.fixture(scope="module")
def server():
    with Server(TINY, *FLAGS) as server:
        yield server


@pytest.fixture
def client(server):
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def message(question: str, *images) -> list[dict]:
    urls = [f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in images]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def conversation(case: Case) -> list[dict]:
    """The messages that the chat template writes the case's prompt from."""
    images, messages = iter(case.images), []
    for turn in case.prompt.split("USER: ")[1:]:
        text, _, answer = turn.partition(" ASSISTANT:")
        messages += message(text.replace("<image>\n", ""), *islice(images, text.count("<image>")))
        if answer:
            messages.append({"role": "assistant", "content": answer.strip().removesuffix("</s>")})
    return messages


def ask(client, messages, m=None, **kwargs):
    """With the number of visual tokens, if any, as it is documented."""
    extra_body = {"return_token_ids": True}
    if m is not None:
        extra_body["mm_processor_kwargs"] = {"num_visual_tokens": m}
    extra_body |= kwargs.pop("extra_body", {})
    return client.chat.completions.create(
        model="mqt", messages=messages, temperature=0, max_tokens=NEW_TOKENS, extra_body=extra_body, **kwargs
    )


@pytest.mark.parametrize("index", [*range(4), TWO_NUMBERS])
def test_answers_are_those_of_transformers(client, expected, index):
    case, answer = TINY_CASES[index], expected["tiny"][index]
    completion = ask(client, conversation(case), case.m)
    assert completion.prompt_token_ids == answer.prompt_ids
    assert completion.usage.prompt_tokens_details.multimodal_tokens == {"image": answer.prompt_ids.count(560)}
    assert completion.usage.prompt_tokens == len(answer.prompt_ids)
    assert completion.choices[0].token_ids == answer.ids
    assert completion.choices[0].message.content.strip() == answer.text


def test_64_streams_at_once_with_mixed_numbers(server, expected):
    import openai

    async def stream(client, image, question, m) -> tuple[str, int]:
        chunks = await ask(client, message(question, image), m, stream=True, stream_options={"include_usage": True})
        text, prompt_tokens = "", None
        async for chunk in chunks:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            prompt_tokens = chunk.usage.prompt_tokens if chunk.usage else prompt_tokens
        return text.strip(), prompt_tokens

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, *chat) for chat in CHATS))

    assert len(CHATS) == 64
    answers = asyncio.run(all_at_once())
    assert answers == [(answer.text, len(answer.prompt_ids)) for answer in expected["tiny"][:64]]


def test_a_clients_id_of_a_picture_holds_at_any_number(client, expected):
    """Its first request brings the picture, the others its id alone."""
    index = CHATS.index((MOSAICS[1], QUESTIONS[2], None))
    for answer, m in zip(expected["tiny"][index : index + 4], BUDGETS):
        messages = message(QUESTIONS[2], MOSAICS[1])
        messages[0]["content"][0] |= {"uuid": "mosaic"} if m is None else {"uuid": "mosaic", "image_url": None}
        completion = ask(client, messages, m)
        assert completion.prompt_token_ids == answer.prompt_ids and completion.choices[0].token_ids == answer.ids


def test_requests_at_other_numbers_find_the_blocks_of_the_first(client):
    """Those that the text in front of the image and its visual tokens fill: here text and one visual token."""
    content = [{"type": "text", "text": "Look closely at this picture of many different things. " * 3}]
    content += message("List the items.", MOSAICS[3])[0]["content"]
    answers = [ask(client, [{"role": "user", "content": content}], m) for m in (16, 4, 7)]
    assert answers[0].prompt_token_ids.index(560) == 31
    assert [answer.usage.prompt_tokens_details.cached_tokens for answer in answers[1:]] == [32, 32]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "kwargs, reason",
    [
        *(
            ({"num_visual_tokens": m}, f"`mm_processor_kwargs['num_visual_tokens']` is {m!r}, but must be")
            for m in (0, 17, 257, -1, "4", "auto", 4.5, True, None, [0], ["4"], {"a": 1})
        ),
        (
            {"num_visual_tokens": [1, 4]},
            "`mm_processor_kwargs['num_visual_tokens']` has 2 entries for 1 image, but must",
        ),
        ({"num_visual_token": 4}, "has 'num_visual_token', but only 'num_visual_tokens' is allowed"),
    ],
)
def test_bad_numbers_are_bad_requests(client, expected, kwargs, reason, stream):
    import openai

    image, question, _ = CHATS[0]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, message(question, image), stream=stream, extra_body={"mm_processor_kwargs": kwargs})
    assert caught.value.status_code == 400 and reason in caught.value.body["message"]
    if "token'" not in reason:
        assert "1..16" in caught.value.body["message"]
    assert ask(client, message(question, image)).choices[0].token_ids == expected["tiny"][0].ids


def test_a_client_that_hangs_up_leaves_the_server_healthy(server, client, expected):
    image, question, m = CHATS[2]
    for _ in range(4):
        extra_body = {"mm_processor_kwargs": {"num_visual_tokens": 4}, "ignore_eos": True}
        stream = client.chat.completions.create(
            model="mqt", messages=message(question, image), max_tokens=900, stream=True, extra_body=extra_body
        )
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 120
    while server.num_requests():
        assert time.monotonic() < deadline, "requests of clients that are gone still run"
        time.sleep(0.1)
    assert server.is_healthy()
    assert ask(client, message(question, image), m).choices[0].token_ids == expected["tiny"][2].ids


def test_text_that_looks_like_a_placeholder_is_text(client):
    plain = ask(client, message("Is there an <image> of a bag?", MOSAICS[0]), 4)
    assert plain.prompt_token_ids.count(560) == 4  # the picture's
    assert ask(client, message("Is there an <image>?")).prompt_token_ids.count(560) == 0


def test_a_checkpoint_whose_tokenizer_is_not_legacy(legacy_false, expected):
    """Over several turns and with several pictures, transparent ones too, at the default and at any number."""
    import openai

    with Server(legacy_false, *FLAGS) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for case, answer in zip(golden_cases(), expected["legacy_false"]):
            # vLLM gives our plugin no say in text alone: of a chat it leaves BOS to the chat template.
            extra_body = {} if case.images else {"add_special_tokens": True}
            completion = ask(client, conversation(case), case.m, extra_body=extra_body)
            assert completion.prompt_token_ids == answer.prompt_ids, case
            assert completion.choices[0].token_ids == answer.ids, case
