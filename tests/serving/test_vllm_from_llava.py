"""A LLaVA made elastic in vLLM's engine, against transformers."""

import pytest
from transformers import AutoConfig

from tests.builders.both import MQT, QUECC
from tests.builders.configs import DECODERS, TEXT_CONFIG
from tests.builders.llavas import save_llava
from tests.integration.test_from_llava import make
from tests.serving.conftest import engine, start_process
from tests.serving.serving_cases import BUDGETS, MOSAICS, QUESTIONS, Case, ask_transformers


pytestmark = pytest.mark.vllm
HEADS_OF_32 = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}  # the narrowest on a CPU
PROMPT = "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"
HELLO = Case("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
MQT_CASES = [
    *(Case(PROMPT.format(question), (MOSAICS[0],), m) for question in QUESTIONS for m in BUDGETS),
    Case(PROMPT.format("<image>\nWhich?"), tuple(MOSAICS[:2]), (9, 2)),
    HELLO,
]
QUECC_CASES = [*(Case(PROMPT.format(question), (MOSAICS[0],)) for question in QUESTIONS), HELLO]


@pytest.mark.parametrize(
    ("case", "parts", "cases", "encoded"),
    [
        (MQT, ("llama", "clip_vision_model"), MQT_CASES, [16, 16]),
        (MQT, ("qwen2", "siglip_vision_model"), MQT_CASES, [16, 16]),
        (QUECC, ("llama", "clip_vision_model"), QUECC_CASES, [4] * len(QUESTIONS)),  # once for each question
    ],
    ids=["mqt-llama", "mqt-qwen2", "quecc-llama"],
)
def test_tokens_and_prompts_are_those_of_transformers(case, parts, cases, encoded, tmp_path):
    text_config = AutoConfig.for_model(parts[0], **{**TEXT_CONFIG, **HEADS_OF_32, **DECODERS[parts[0]]})
    save_llava(tmp_path / "llava", *parts, template="chatml", text_config=text_config)
    made = tmp_path / "made"
    make(case, tmp_path / "llava", made)
    with start_process() as process:
        expected = process.submit(ask_transformers, made, cases).result()
    with engine(made) as ask:
        answers, sizes = ask(cases)
    assert len(answers) == len(expected) == len(cases)
    for one, ours, theirs in zip(cases, answers, expected):
        assert ours == theirs, one
    assert sizes == encoded
    assert len({tuple(answer.ids) for answer in expected[:4]}) > 1  # what an image is encoded for makes a difference
