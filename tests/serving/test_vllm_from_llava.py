"""A LLaVA made elastic in vLLM's engine, against transformers."""

import pytest
from transformers import AutoConfig

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from tests.builders.configs import DECODERS, TEXT_CONFIG
from tests.builders.llavas import save_llava
from tests.serving.conftest import engine, start_process
from tests.serving.serving_cases import BUDGETS, MOSAICS, QUESTIONS, Case, ask_transformers


pytestmark = pytest.mark.vllm
HEADS_OF_32 = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}  # the narrowest on a CPU
PROMPT = "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"
CASES = [
    *(Case(PROMPT.format(question), (MOSAICS[0],), m) for question in QUESTIONS for m in BUDGETS),
    Case(PROMPT.format("<image>\nWhich?"), tuple(MOSAICS[:2]), (9, 2)),
    Case("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"),
]


@pytest.mark.parametrize("parts", [("llama", "clip_vision_model"), ("qwen2", "siglip_vision_model")])
def test_tokens_and_prompts_are_those_of_transformers(parts, tmp_path):
    text_config = AutoConfig.for_model(parts[0], **{**TEXT_CONFIG, **HEADS_OF_32, **DECODERS[parts[0]]})
    llava, made = tmp_path / "llava", tmp_path / "made"
    save_llava(llava, *parts, template="chatml", text_config=text_config)
    MQTLlavaForConditionalGeneration.from_llava(llava, max_visual_tokens=16).save_pretrained(made)
    MQTLlavaProcessor.from_llava(llava, max_visual_tokens=16).save_pretrained(made)
    with start_process() as process:
        expected = process.submit(ask_transformers, made, CASES).result()
    with engine(made) as ask:
        answers, encoded = ask(CASES)
    assert len(answers) == len(expected) == len(CASES)
    for case, ours, theirs in zip(CASES, answers, expected):
        assert ours == theirs, case
    assert encoded == [16, 16]
    assert len({tuple(answer.ids) for answer in expected[:4]}) > 1  # the number of tokens makes a difference
