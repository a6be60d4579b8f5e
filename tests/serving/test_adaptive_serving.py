"""
Adaptive budgets in vLLM's server and engine against transformers' `generate`.

    RANDOM_REQUESTS=500 nox -s vllm -- -m pytest -m vllm tests/serving/test_adaptive_serving.py -k random   asks more
"""

import asyncio
import json
import os
import random
import shutil
import socket
import time
from itertools import product
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.serving import serving_cases
from tests.serving.conftest import start_process
from tests.serving.serving_cases import MOSAICS, NEW_TOKENS, QUESTIONS, TINY, chat, start_engine
from tests.serving.test_openai_server import FLAGS, Server, message


pytestmark = pytest.mark.vllm
MIDDLEWARE = ["--middleware", "mqt_llava.serving.adaptive_middleware.AdaptiveBudgets", "--api-key", "secret"]
BUDGETS = ["auto", {"levels": [1, 4, 16], "confidence": 0.85, "num_probed_tokens": 3}]
PAIRS = list(product(MOSAICS, QUESTIONS))


def ask_transformers(cases: list[tuple], dtype: str = "float32") -> list[tuple[int, list[int], str]]:
    """Level, tokens and text of the answer to each budget, image and question."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import mqt_llava

    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(TINY, dtype=dtype).eval()
    processor = AutoProcessor.from_pretrained(TINY)

    def answer(budget, image, question) -> tuple[int, list[int], str]:
        inputs = processor(images=Image.open(image), text=chat(question, image).prompt, return_tensors="pt")
        budget = budget if isinstance(budget, str) else mqt_llava.AdaptiveBudget(**budget)
        output = model.generate(
            **inputs,
            num_visual_tokens=budget,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
        )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return int(output.visual_token_level), ids, processor.decode(ids, skip_special_tokens=True)

    return [answer(*case) for case in cases]


def ask_engine(budget, pairs=tuple(PAIRS)) -> list[tuple[int, list[int]]]:
    """The same of `vllm.LLM`, and at last a prompt without an image."""
    from vllm import SamplingParams

    from mqt_llava.serving.adaptive_engine import generate_adaptively

    prompts = [
        {"prompt": chat(question, image).prompt, "multi_modal_data": {"image": Image.open(image)}}
        for image, question in pairs
    ]
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    llm = serving_cases.ENGINE.llm
    outputs, levels = generate_adaptively(llm, [*prompts, "USER: Hello ASSISTANT:"], params, budget, use_tqdm=False)
    return [(level, list(output.outputs[0].token_ids)) for level, output in zip(levels, outputs)]


@pytest.fixture(scope="module")
def expected():
    """By budget, of each pair."""
    with start_process() as process:
        cases = [(budget, *pair) for budget, pair in product(BUDGETS, PAIRS)]
        answers = process.submit(ask_transformers, cases).result()
    return [answers[: len(PAIRS)], answers[len(PAIRS) :]]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """The embedded checkpoint, with a promise about its budget."""
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("checkpoint") / "calibrated")
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    budget = config["adaptive_budget"]
    about = {"levels": budget["levels"], "threshold": budget["confidence"], "checkpoint": "", "max_visual_tokens": 16}
    about |= {name: budget[name] for name in ("num_probed_tokens", "unended_power")}
    about |= {"num_prompts": 500, "num_different": 3}
    budget["promise"] = {"risk": 0.02, "confidence": 0.95, **about}
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def server(calibrated):
    with Server(calibrated, *FLAGS, *MIDDLEWARE) as server:
        yield server


@pytest.fixture
def client(server):
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)


def body(number, *pair, **fields) -> dict:
    image, question = pair or PAIRS[0]
    extra_body = {"mm_processor_kwargs": {"num_visual_tokens": number}, "return_token_ids": True}
    fields = {"temperature": 0, "max_tokens": NEW_TOKENS, "extra_body": extra_body, **fields}
    return {"model": "mqt", "messages": message(question, image), **fields}


def test_levels_differ(expected):
    levels = [{level for level, *_ in answers} for answers in expected]
    assert levels[0] | levels[1] == {1, 4, 16} and all(len(some) > 1 for some in levels)


def ask_at_once(server, cases: list[tuple]) -> list[tuple[int, list[int], str]]:
    """Level, tokens and text of the answer to each budget, image, question and whether it is streamed."""
    import openai

    async def ask(client, budget, image, question, stream):
        raw = await client.chat.completions.with_raw_response.create(**body(budget, image, question, stream=stream))
        level, answer = int(raw.headers["x-visual-token-level"]), raw.parse()
        if not stream:
            assert answer.usage.visual_token_level == level and answer.usage.probed_prompt_tokens > 0
            return level, answer.choices[0].token_ids, answer.choices[0].message.content.strip()
        ids, text = [], ""
        async for chunk in answer:
            ids += getattr(chunk.choices[0], "token_ids", None) or []  # the first chunk has the role alone
            text += chunk.choices[0].delta.content or ""
        return level, ids, text.strip()

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, *case) for case in cases))

    return asyncio.run(ask_all())


def test_64_at_once_streamed_and_not(server, expected):
    answers = ask_at_once(
        server, [(budget, *pair, stream) for budget, pair, stream in product(BUDGETS, PAIRS, (False, True))]
    )
    assert len(answers) == 64
    assert answers == [answer for answers in expected for answer in answers for _ in range(2)]


def random_budgets(folder: Path, number: int) -> list[tuple]:
    """Budgets, images that are shifted mosaics, and questions."""
    rng = random.Random(0)
    pictures = []
    for index, mosaic in enumerate(rng.choices(MOSAICS, k=number // 2)):
        picture = ImageChops.offset(Image.open(mosaic), rng.randrange(90), rng.randrange(90))
        picture.save(folder / f"{index}.png")
        pictures.append(folder / f"{index}.png")

    def budget():
        if rng.random() < 0.3:
            return "auto"
        levels = sorted(rng.sample(range(1, 17), rng.randint(2, 6)))
        least = {"confidence": round(rng.uniform(0.3, 1), 3), "margin": round(rng.uniform(0, 0.5), 3)}
        return {"levels": levels, **least, "num_probed_tokens": rng.randint(1, 6), "unended_power": rng.choice((1, 3))}

    return [(budget(), rng.choice(pictures), rng.choice(QUESTIONS)) for _ in range(number)]


def test_random_requests(server, tmp_path):
    number = int(os.environ.get("RANDOM_REQUESTS", 40))
    cases = random_budgets(tmp_path, number)
    with start_process() as process:
        theirs = process.submit(ask_transformers, cases).result()
    ours = ask_at_once(server, [(*case, index % 2 == 0) for index, case in enumerate(cases)])
    for case, answer, expected in zip(cases, ours, theirs):
        assert answer == expected, case
    assert len({level for level, *_ in ours}) > 5


def test_sampling_is_no_part_of_a_probe(client, expected):
    """A probe sees none of what changes the answer's tokens."""
    fields = {"temperature": 2, "seed": 1, "n": 2, "presence_penalty": 2, "logit_bias": {"5": 100}, "stop": ["a", "e"]}
    for index in (0, 5, 10, 15):
        raw = client.chat.completions.with_raw_response.create(**body("auto", *PAIRS[index], **fields))
        assert int(raw.headers["x-visual-token-level"]) == expected[0][index][0]
        assert len(raw.parse().choices) == 2


def test_text_alone_is_not_probed(client):
    extra_body = {"mm_processor_kwargs": {"num_visual_tokens": "auto"}}
    plain = client.completions.create(model="mqt", prompt="USER: Hello ASSISTANT:", temperature=0, max_tokens=4)
    asked = client.completions.with_raw_response.create(
        model="mqt", prompt="USER: Hello ASSISTANT:", temperature=0, max_tokens=4, extra_body=extra_body
    )
    assert asked.headers["x-visual-token-level"] == "0" and asked.parse().choices[0].text == plain.choices[0].text
    assert (
        client.chat.completions.create(**{**body("auto"), "messages": message("Hello")}).usage.visual_token_level == 0
    )


def test_images_carry_numbers_of_their_own(client):
    """And the one without any has the default, M."""
    images = MOSAICS[:2]
    with start_process() as process:
        case = chat(QUESTIONS[2], *images, m=(4, 16))
        (answer,) = process.submit(serving_cases.ask_transformers, TINY, [case]).result()
    messages = message(QUESTIONS[2], *images)
    messages[0]["content"][0]["num_visual_tokens"] = 4
    completion = client.chat.completions.create(
        model="mqt", messages=messages, temperature=0, max_tokens=NEW_TOKENS, extra_body={"return_token_ids": True}
    )
    assert completion.prompt_token_ids == answer.prompt_ids
    assert completion.choices[0].token_ids == answer.ids


def test_refusals(server, client, expected, calibrated):
    """Of the middleware, and of vLLM as an answer to a probe."""
    import openai

    with pytest.raises(openai.BadRequestError, match="`levels` is .1, 17., but must be in 1..16"):
        client.chat.completions.create(**body({"levels": [1, 17]}))
    budget = json.loads((calibrated / "generation_config.json").read_text())["adaptive_budget"]
    budget["promise"]["max_visual_tokens"] = 64
    with pytest.raises(openai.BadRequestError, match="calibrated for a model of M = 64, but this one has 16"):
        client.chat.completions.create(**body(budget))
    extra_body = {"mm_processor_kwargs": {"num_visual_tokens": "auto", "do_resize": False}}
    with pytest.raises(openai.BadRequestError, match="has 'do_resize', but only"):
        client.chat.completions.create(**body("auto", extra_body=extra_body))
    with pytest.raises(openai.NotFoundError, match="another"):
        client.chat.completions.create(**{**body("auto"), "model": "another"})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0).chat.completions.create(**body("auto"))
    assert client.chat.completions.create(**body("auto")).choices[0].token_ids == expected[0][0][1]


def test_clients_that_hang_up_while_probing(server, client, expected):
    fields = body({"levels": list(range(1, 9)), "confidence": 1.0, "num_probed_tokens": 16})
    content = json.dumps({**fields, **fields.pop("extra_body")}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    for delay in (0, 0.01, 0.02, 0.05, 0.1, 0.2) * 4:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + content)
            time.sleep(delay)
    deadline = time.monotonic() + 120
    while server.num_requests():
        assert time.monotonic() < deadline, "requests of clients that are gone still run"
        time.sleep(0.1)
    assert client.chat.completions.create(**body("auto")).choices[0].token_ids == expected[0][0][1]
    assert "Traceback" not in server.read_log()


def promise_of_engine() -> dict:
    from mqt_llava.serving.probing import ServedModel

    budget, _ = ServedModel.from_config(serving_cases.ENGINE.llm.model_config).resolve("auto")
    return budget.to_dict()["promise"]


def test_the_engine_climbs_in_batches(expected, calibrated):
    with start_process(initializer=start_engine, initargs=(calibrated, {})) as process:
        assert process.submit(promise_of_engine).result()["num_prompts"] == 500
        for budget, answers in zip(BUDGETS, expected):
            *ours, (level, ids) = process.submit(ask_engine, budget).result()
            assert ours == [(level, ids) for level, ids, _ in answers]
            assert level == 0 and ids
        with pytest.raises(ValueError, match="but must be in 1..16"):
            process.submit(ask_engine, {"levels": [17]}).result()


@pytest.mark.slow
def test_half_precision_changes_few_levels(tmp_path):
    """Those near a threshold. Two ways to add up 16-bit numbers do not give the same probabilities."""
    cases = [("auto", image, question) for _, image, question in random_budgets(tmp_path, 400)]
    with start_process() as process:
        theirs, exact = (process.submit(ask_transformers, cases, dtype).result() for dtype in ("bfloat16", "float32"))
    with start_process(initializer=start_engine, initargs=(TINY, {"dtype": "bfloat16"})) as process:
        *ours, _ = process.submit(ask_engine, "auto", [pair for _, *pair in cases]).result()
    levels = [[level for level, *_ in answers] for answers in (ours, theirs, exact)]
    same = [sum(map(int.__eq__, levels[0], other)) / len(cases) for other in levels[1:]]
    print(f"The level of transformers in bfloat16: {same[0]:.2%}; in float32: {same[1]:.2%}.")
    assert min(same) > 0.95
