"""The questions that are found in the token ids of a prompt are those of its text."""

import random

import pytest

from mqt_llava import MQTLlavaProcessor, QueCCLlavaProcessor
from mqt_llava.serving.prompt_text import prompt_text
from tests.builders.paths import GOLDEN_NAMES


WORDS = ["What", " is", "  ", "\n", "this?", "ASSISTANT", " ASSISTANT:", "USER: ", "</s>", "<s>", "<unk>", "< image>"]
WORDS += ["<image>", "<image>\n", "é", "猫", "🙂", "\t", " .", "don't", "\u200b", "\r\n"]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_questions_of_random_prompts(converted, name):
    """Of tokenizers that write a space in front of what follows an added token, and of those that do not."""
    mqt = MQTLlavaProcessor.from_pretrained(converted[name])
    quecc = QueCCLlavaProcessor(mqt.image_processor, mqt.tokenizer, max_visual_tokens=36)
    rng, num_questions = random.Random(0), 0
    for _ in range(300):
        text = "".join(rng.choices(WORDS, k=rng.randint(1, 14))) + "<image>\nWhat </s> is it? ASSISTANT:"
        try:
            questions = quecc.questions(text)
        except ValueError:
            continue
        bos, *ids = quecc.tokenizer.encode(text)
        assert bos == quecc.tokenizer.bos_token_id
        assert quecc.questions(prompt_text(quecc.tokenizer, ids, quecc.image_token_id)) == questions, text
        num_questions += len(questions)
    assert num_questions > 300
