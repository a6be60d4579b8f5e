"""`transformers serve` with checkpoints of ours, by the package and by the code that lies in a folder."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.utils.import_utils import is_serve_available

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.chats import tokenize_chat, user
from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY


pytestmark = pytest.mark.skipif(not is_serve_available(), reason='needs pip install "transformers[serving]"')
MOSAIC = PICTURES / "mosaic_0.png"
PAGE = (REPOSITORY / "docs" / "serving.md").read_text()
QUESTION = "List the items in the second row."
SERVE_ALONE = """
import sys
sys.modules["mqt_llava"] = None  # the folder's code must do
from transformers.cli.transformers import main
main()
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The embedded checkpoint with its code, and a generation config that asks for one visual token."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT)
    model.generation_config.num_visual_tokens = 1
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(CHECKPOINT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected():
    """What `generate` answers, by number of visual tokens."""
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    inputs = tokenize_chat(processor, [user(Image.open(MOSAIC), QUESTION)], add_generation_prompt=True)
    with torch.no_grad():
        outputs = {m: model.generate(**inputs, num_visual_tokens=m, max_new_tokens=40) for m in (1, 4, 16)}
    start = inputs["input_ids"].shape[1]
    answers = {m: processor.decode(ids[0, start:], skip_special_tokens=True) for m, ids in outputs.items()}
    assert answers[1] != answers[16]
    return answers


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a server and gives what asks it."""
    servers = []

    def start(script: str, folder, *flags: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        scratch = tmp_path_factory.mktemp("server")
        log = scratch / "log.txt"
        command = [sys.executable, "-c", script, "serve", str(folder), "--port", str(port), "--device", "cpu", *flags]
        environment = {**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
        with log.open("w") as file:
            servers.append(subprocess.Popen(command, cwd=scratch, env=environment, stdout=file, stderr=file))
        url = f"http://localhost:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                assert servers[-1].poll() is None, log.read_text()[-4000:]
                time.sleep(0.2)
        return lambda **fields: ask(url, folder, **fields)

    yield start
    for server in servers:
        server.terminate()
        server.wait()


def ask(url: str, folder, **fields) -> str:
    image = {"url": "data:image/png;base64," + base64.b64encode(MOSAIC.read_bytes()).decode()}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": QUESTION}]
    body = {"model": str(folder), "messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        text = response.read().decode()
    if not fields.get("stream"):
        return json.loads(text)["choices"][0]["message"]["content"]
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(chunk.get("error") or chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.fixture(scope="module")
def by_package(start):
    """The command of the page."""
    (script,) = re.findall(r'^    python -c "(import mqt_llava; .*?)" serve ', PAGE, re.MULTILINE)
    return start(script, CHECKPOINT)


@pytest.mark.parametrize("stream", [False, True])
def test_by_the_package(by_package, expected, stream):
    assert by_package(stream=stream) == expected[16]
    for m, answer in expected.items():
        template = {"processor_kwargs": {"num_visual_tokens": m}}
        assert by_package(stream=stream, chat_template_kwargs=template) == answer


def test_a_request_may_bring_a_generation_config(by_package, expected):
    for m in (1, 16):
        config = json.dumps({"num_visual_tokens": m, "max_new_tokens": 40})
        assert by_package(generation_config=config, chat_template_kwargs={}) == expected[m]


def test_a_wrong_number_is_no_answer(by_package, expected):
    wrong = {"chat_template_kwargs": {"processor_kwargs": {"num_visual_tokens": 17}}}
    with pytest.raises(urllib.error.HTTPError, match="500"):
        by_package(**wrong)
    streamed = by_package(stream=True, generation_config=json.dumps({"num_visual_tokens": 17, "max_new_tokens": 40}))
    assert "`num_visual_tokens` is 17, but must be an integer in 1..16" in streamed
    with pytest.raises(urllib.error.HTTPError, match="422"):
        by_package(mm_processor_kwargs={"num_visual_tokens": 4})
    assert by_package() == expected[16]


@pytest.mark.parametrize("flags", [(), ("--continuous-batching",)], ids=["one by one", "continuous batching"])
def test_by_the_code_of_the_folder(start, saved, expected, flags):
    """The number that its generation config names holds, before that of the processor."""
    answer = start(SERVE_ALONE, saved, "--trust-remote-code", *flags)
    assert answer() == answer(stream=True) == expected[1]
    assert answer(chat_template_kwargs={"processor_kwargs": {"num_visual_tokens": 16}}) == expected[1]
