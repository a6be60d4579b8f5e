"""The middleware around an app that stands for vLLM's."""

import asyncio
import json
from math import log
from types import SimpleNamespace

import pytest

from mqt_llava import AdaptiveBudget, MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.serving.adaptive_engine import at_level, batches, generate_adaptively
from mqt_llava.serving.adaptive_middleware import AdaptiveBudgets
from mqt_llava.serving.adaptive_requests import Limits
from mqt_llava.serving.probing import suffices


CHAT = "/v1/chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "What is it?"}
BUDGET = {"levels": [1, 4, 16], "confidence": 0.5, "num_probed_tokens": 2, "unended_power": 2}


class FakeServer:
    """
    Answers any body, probes with the probabilities of its script, and notes what it was asked.

    Args:
        probabilities: By level, of the best and the second token at each place.
        finish_reason: Of its answers.
    """

    def __init__(self, probabilities=None, status=200, num_ranks=1, default=16, finish_reason="stop", **model_config):
        self.asked, self.headers, self.bodies, self.aborted, self.hangs = [], [], [], 0, None
        self.probabilities, self.status, self.finish_reason = probabilities or {}, status, finish_reason
        model = {
            "hf_config": MQTLlavaConfig(max_visual_tokens=16),
            "logprobs_mode": "raw_logprobs",
            "max_logprobs": 20,
        }
        generation_config = {"adaptive_budget": {"levels": [2, 8], "confidence": 0.9}}
        model_config = SimpleNamespace(
            **{**model, **model_config}, try_get_generation_config=lambda: generation_config
        )
        parallel_config = SimpleNamespace(local_engines_only=False, data_parallel_size=num_ranks)
        info = SimpleNamespace(num_visual_tokens_per_image=lambda kwargs, num_images: [default] * num_images)
        renderer = SimpleNamespace(get_mm_processor=lambda: SimpleNamespace(info=info))
        self.state = SimpleNamespace(
            vllm_config=SimpleNamespace(model_config=model_config, parallel_config=parallel_config),
            engine_client=SimpleNamespace(renderer=renderer),
        )

    async def __call__(self, scope, receive, send):
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        body = b"".join(message["body"] for message in messages)
        self.bodies.append([message["body"] for message in messages])
        self.headers.append(dict(scope["headers"]))
        if "content-length" in self.headers[-1]:
            assert int(self.headers[-1][b"content-length"]) == len(body)
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        asked = asked if isinstance(asked, dict) else {}
        self.asked.append(asked)
        if self.hangs:
            await self.hang(receive)
            return
        answer, kind = (
            {"usage": {"prompt_tokens": 10}, "choices": [{"message": {"content": "é"}}]},
            b"application/json",
        )
        if asked.get("top_logprobs"):
            places = self.probabilities[asked["mm_processor_kwargs"]["num_visual_tokens"]]
            content = [{"top_logprobs": [{"logprob": log(value)} for value in place]} for place in places]
            answer["choices"][0] |= {"logprobs": {"content": content}, "finish_reason": self.finish_reason}
        chunks = [json.dumps(answer).encode()]
        if asked.get("stream"):
            chunks, kind = [b"data: 1\n\n", b"data: [DONE]\n\n"], b"text/event-stream"
        headers = [(b"content-type", kind), (b"content-length", str(sum(map(len, chunks))).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for index, chunk in enumerate(chunks):
            await send({"type": "http.response.body", "body": chunk, "more_body": index + 1 < len(chunks)})

    async def hang(self, receive):
        try:
            if self.hangs == "listening":
                assert (await receive())["type"] == "http.disconnect"
            else:
                await asyncio.sleep(3600)
        finally:
            self.aborted += 1

    @property
    def levels(self) -> list:
        return [asked["mm_processor_kwargs"]["num_visual_tokens"] for asked in self.asked]


def chat(number, *content, **fields) -> dict:
    body = {"model": "mqt", "messages": [{"role": "user", "content": [*(content or (IMAGE,)), TEXT]}], **fields}
    return body if number is None else {**body, "mm_processor_kwargs": {"num_visual_tokens": number}}


def call(server, body, path=CHAT, method="POST", headers=(), gone=False, num_parts=1):
    """Status, headers, body and the number of its parts; nothing where the client is gone."""
    body, sent = body if isinstance(body, bytes) else json.dumps(body).encode(), []
    size = -(-len(body) // num_parts)
    parts = [
        {"body": body[index * size : (index + 1) * size], "more_body": index + 1 < num_parts}
        for index in range(num_parts)
    ]

    async def run():
        left = [{"type": "http.request", **part} for part in parts]

        async def receive():
            if left:
                return left.pop(0)
            while not (gone and server.asked):
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "app": server}
        await asyncio.wait_for(AdaptiveBudgets(server)(scope, receive, send), 30)

    asyncio.run(run())
    if not sent:
        return None
    answer = b"".join(message["body"] for message in sent[1:])
    headers = dict(sent[0]["headers"])
    assert int(headers[b"content-length"]) == len(answer)
    return sent[0]["status"], headers, answer, len(sent) - 1


SURE, UNSURE = [[0.9, 0.1], [0.6, 0.3]], [[0.9, 0.1], [0.3, 0.2]]


@pytest.mark.parametrize(
    "probabilities, level",
    [
        ({1: SURE}, 1),
        ({1: UNSURE, 4: SURE}, 4),
        ({1: UNSURE, 4: UNSURE}, 16),
        ({1: UNSURE, 4: [[0.2, 0.9]]}, 4),  # the answer ended, and the best token comes last
        ({1: [], 4: SURE}, 4),  # nothing was looked at
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_first_level_that_suffices_answers(probabilities, level, stream):
    server = FakeServer(probabilities)
    status, headers, answer, num_parts = call(server, chat(BUDGET, stream=stream, max_tokens=99))
    probes = len(probabilities)
    assert status == 200 and headers[b"x-visual-token-level"] == str(level).encode()
    assert server.levels == [*list(probabilities), level]
    assert server.asked[-1] == chat(level, stream=stream, max_tokens=99)
    if stream:
        assert answer == b"data: 1\n\ndata: [DONE]\n\n" and num_parts == 2
    else:
        usage = {"prompt_tokens": 10, "visual_token_level": level, "probed_prompt_tokens": 10 * probes}
        assert json.loads(answer) == {"usage": usage, "choices": [{"message": {"content": "é"}}]}


@pytest.mark.parametrize("finish_reason, levels", [("stop", [1, 1]), ("length", [1, 4, 4])])
def test_an_answer_that_goes_on_must_be_more_certain(finish_reason, levels):
    server = FakeServer({1: SURE, 4: [[0.9, 0.1], [0.8, 0.1]]}, finish_reason=finish_reason)  # 0.6 squared is below
    call(server, chat(BUDGET))
    assert server.levels == levels


def test_the_margin_is_a_lead():
    budget = AdaptiveBudget(confidence=0.5, margin=0.25)
    places = [[[log(0.6), log(second)]] for second in (0.3, 0.36)]
    assert [suffices(budget, logprobs, "stop") for logprobs in places] == [True, False]


def test_auto_is_the_checkpoints_budget():
    server = FakeServer({2: [[0.95, 0.01]]})
    assert call(server, chat("auto"))[1][b"x-visual-token-level"] == b"2"
    kwargs = {"images_kwargs": {"num_visual_tokens": "auto"}}
    assert call(server, {**chat(None), "mm_processor_kwargs": kwargs})[0] == 200
    assert server.levels == [2, 2] * 2 and "images_kwargs" not in server.asked[-1]["mm_processor_kwargs"]


def test_a_probe_is_greedy_and_the_clients_own():
    sampling = {
        "temperature": 2,
        "n": 3,
        "logit_bias": {"1": 9},
        "presence_penalty": 1,
        "stop": ["a"],
        "logprobs": True,
    }
    sampling |= {"response_format": {"type": "json_object"}, "tools": [{}], "tool_choice": "required", "min_tokens": 4}
    prompt = {"cache_salt": "a", "chat_template_kwargs": {"b": 1}, "add_special_tokens": True}
    server = FakeServer({1: SURE})
    headers = [(b"authorization", b"Bearer a"), (b"accept-encoding", b"gzip"), (b"content-length", b"1")]
    call(server, chat(BUDGET, **sampling, **prompt, stream=True), headers=headers)
    probe, own = server.asked
    assert own == chat(1, **sampling, **prompt, stream=True)
    assert probe.items() >= {**chat(1), **prompt, "tools": [{}], "tool_choice": "none"}.items()
    assert (probe["temperature"], probe["max_tokens"], probe["logprobs"], probe["top_logprobs"]) == (0, 2, True, 2)
    assert (probe["n"], probe["presence_penalty"], probe["top_p"], probe["stream"]) == (1, 0, 1, False)
    assert not probe.keys() & {"logit_bias", "stop", "response_format", "min_tokens"}
    assert all(given[b"authorization"] == b"Bearer a" for given in server.headers)
    assert [b"accept-encoding" in given for given in server.headers] == [False, True]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_without_an_image_nothing_is_probed(path):
    server = FakeServer()
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    _, headers, answer, _ = call(server, {**body, "mm_processor_kwargs": {"num_visual_tokens": BUDGET}}, path)
    assert server.levels == [16] and headers[b"x-visual-token-level"] == b"0"
    assert json.loads(answer)["usage"]["probed_prompt_tokens"] == 0


def test_a_probe_that_fails_is_the_answer():
    server = FakeServer({1: SURE}, status=401)
    status, headers, answer, _ = call(server, chat(BUDGET))
    assert status == 401 and b"x-visual-token-level" not in headers and len(server.asked) == 1
    assert json.loads(answer)["choices"][0]["message"] == {"content": "é"}


@pytest.mark.parametrize("hangs", ["listening", "deaf"])
def test_a_client_that_hangs_up_ends_its_probe(hangs):
    server = FakeServer()
    server.hangs = hangs
    assert call(server, chat(BUDGET), gone=True) is None
    assert len(server.asked) == server.aborted == 1


@pytest.mark.parametrize(
    "number, reason",
    [
        ({"a": 1}, "'a' is none"),
        ({"confidence": 1.5}, "`confidence` is 1.5, but must be a number in 0..1"),
        ({"confidence": float("nan")}, "`confidence` is nan"),
        ({"margin": "0"}, "`margin` is '0'"),
        ({"unended_power": 0.5}, "`unended_power` is 0.5, but must be a finite number of at least 1"),
        ({"levels": [1, 17]}, "`levels` is [1, 17], but must be in 1..16"),
        ({"levels": [0, 4]}, "`levels` is [0, 4], but must be positive and ascend"),
        ({"levels": 4}, "`levels` is 4, but must be a list"),
        ({"levels": list(range(1, 10))}, "`levels` has 9 entries, but this server allows 8"),
        ({"num_probed_tokens": 17}, "`num_probed_tokens` is 17, but this server allows 16"),
        ({"num_probed_tokens": 0}, "`num_probed_tokens` is 0"),
    ],
)
def test_bad_budgets_are_bad_requests(number, reason):
    server = FakeServer()
    status, _, answer, _ = call(server, chat(number))
    error = json.loads(answer)["error"]
    assert status == error["code"] == 400 and reason in error["message"] and server.asked == []


def test_the_owner_sets_the_limits(monkeypatch):
    def refusal(number, max_levels, max_probed_tokens) -> str:
        monkeypatch.setenv("MQT_LLAVA_MAX_LEVELS", max_levels)
        monkeypatch.setenv("MQT_LLAVA_MAX_PROBED_TOKENS", max_probed_tokens)
        monkeypatch.setattr(AdaptiveBudgets, "limits", Limits.from_environment())
        status, _, answer, _ = call(FakeServer(), chat(number))
        assert status == 400
        return json.loads(answer)["error"]["message"]

    assert "`levels` has 3 entries, but this server allows 2" in refusal(BUDGET, "2", "16")
    assert "`levels` has 3 entries, but this server allows 2" in refusal({"confidence": 0.5}, "2", "16")  # by default
    assert "`num_probed_tokens` is 2, but this server allows 1" in refusal(BUDGET, "3", "1")
    for value in ("0", "-1", "four", "", "1.5"):
        with pytest.raises(ValueError, match=f"MQT_LLAVA_MAX_LEVELS is '{value}', but must be a positive integer"):
            refusal(BUDGET, value, "1")


@pytest.mark.parametrize(
    "model_config, reason",
    [
        ({"logprobs_mode": "raw_logits"}, "needs probabilities, but vLLM runs with `--logprobs-mode raw_logits`"),
        ({"max_logprobs": 1}, "of 2 tokens, but vLLM runs with `--max-logprobs 1`"),
        ({"hf_config": QueCCLlavaConfig()}, "cannot be chosen for the model that is served, a quecc_llava"),
    ],
)
@pytest.mark.parametrize("body", [chat("auto"), chat(None, {**IMAGE, "num_visual_tokens": 4})])
def test_engines_that_cannot_choose(body, model_config, reason):
    status, _, answer, _ = call(FakeServer(**model_config), body)
    assert status == 400 and reason in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("number, expected", [(None, [4, 8]), (2, [4, 2]), ([1, 3], [4, 3])])
def test_images_carry_numbers_of_their_own(number, expected):
    server = FakeServer(default=8)
    assert call(server, chat(number, {**IMAGE, "num_visual_tokens": 4}, IMAGE))[0] == 200
    assert server.asked == [chat(expected, IMAGE, IMAGE)]


@pytest.mark.parametrize(
    "number, own, reason",
    [
        (None, 17, "`num_visual_tokens of image 1` is 17, but must be an integer in 1..16"),
        (None, "auto", "`num_visual_tokens of image 1` is 'auto'"),
        (17, 4, "`mm_processor_kwargs['num_visual_tokens']` is 17"),
        ("auto", 4, "is 'auto', but must be a number where images in `messages` have numbers of their own"),
        ([4], 4, "has 1 entries for 2 images"),
        (None, [4], "`num_visual_tokens of image 1` is [4], but one image has one number"),
    ],
)
def test_bad_numbers_of_images_are_bad_requests(number, own, reason):
    server = FakeServer()
    status, _, answer, _ = call(server, chat(number, IMAGE, {**IMAGE, "num_visual_tokens": own}))
    assert status == 400 and reason in json.loads(answer)["error"]["message"] and server.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"num_visual_tokens",
        b'["num_visual_tokens"]',
        b'{"mm_processor_kwargs": ["num_visual_tokens"]}',
        b'{ "messages": 4, "mm_processor_kwargs": {"num_visual_tokens": 4}}',
        b'{"messages": [4, {"content": [4]}], "mm_processor_kwargs": {"num_visual_tokens": "4"}}',
        b"[" * 100_000 + b"num_visual_tokens",
        b"\xff num_visual_tokens",
        b"",
    ],
)
def test_other_bodies_pass_as_they_came(body):
    server = FakeServer()
    status, headers, _, _ = call(server, body, num_parts=3)
    assert status == 200 and b"x-visual-token-level" not in headers
    assert b"".join(server.bodies[0]) == body and len(server.bodies[0]) == 3


@pytest.mark.parametrize("path, method", [("/v1/embeddings", "POST"), (CHAT, "PUT")])
def test_other_requests_pass(path, method):
    server = FakeServer()
    assert call(server, chat("auto"), path, method)[0] == 200
    assert server.asked == [chat("auto")]


def test_a_request_stays_with_one_copy_of_the_model():
    server = FakeServer({1: UNSURE, 4: UNSURE}, num_ranks=4)
    call(server, chat(BUDGET))
    call(server, chat(BUDGET, max_tokens=3))
    ranks = [headers[b"x-data-parallel-rank"] for headers in server.headers]
    assert len(set(ranks)) == 1 and int(ranks[0]) in range(4) and len(ranks) == 6
    server = FakeServer({1: SURE}, num_ranks=4)
    call(server, chat(BUDGET), headers=[(b"x-data-parallel-rank", b"3")])
    assert [headers[b"x-data-parallel-rank"] for headers in server.headers] == [b"3", b"3"]


def test_without_a_probe_vllm_chooses_the_copy():
    server = FakeServer(num_ranks=4)
    call(server, {**chat(BUDGET), "messages": [{"role": "user", "content": "a"}]})
    call(server, chat({"levels": [4]}))
    assert len(server.headers) == 2 and not any(b"x-data-parallel-rank" in headers for headers in server.headers)


def test_the_engines_batches_have_room_in_its_encoder_cache():
    for images, room, sizes in (([1] * 5, 2, [2, 2, 1]), ([3, 0, 0, 1], 2, [1, 3]), ([], 2, []), ([0] * 9, 1, [9])):
        slices = list(batches(images, room))
        assert [len(images[batch]) for batch in slices] == sizes
        assert sum((images[batch] for batch in slices), []) == images


def test_a_level_replaces_a_prompts_own_number():
    kwargs = {"num_visual_tokens": 9, "images_kwargs": {"num_visual_tokens": 2, "a": 1}}
    assert at_level({"mm_processor_kwargs": kwargs}, 4) == {
        "mm_processor_kwargs": {"images_kwargs": {"a": 1}, "num_visual_tokens": 4}
    }
    with pytest.raises(TypeError, match="`mm_processor_kwargs` is {'num_visual_tokens': 4}, but cannot be passed"):
        generate_adaptively(None, ["a"], mm_processor_kwargs={"num_visual_tokens": 4})
    with pytest.raises(ValueError, match="`sampling_params` has 1 entries for 2 prompts"):
        generate_adaptively(None, ["a", "b"], [None])
