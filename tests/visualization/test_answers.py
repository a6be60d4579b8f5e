"""What an answer is made of, and how probable it is."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.visualization import ImageAnswer
from tests.builders.paths import CHECKPOINT, PICTURES


IMAGE = PICTURES / "mosaic_0.png"
QUESTION = "List the items in the second row."


@pytest.fixture(scope="module")
def checkpoint():
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


@torch.no_grad()
@pytest.mark.parametrize("m", [1, 5, 16])
def test_probabilities_are_the_models_loss(checkpoint, m):
    model, processor = checkpoint
    answer = ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION)
    text = processor.decode(answer.answer_ids, skip_special_tokens=True).strip()
    content = [{"type": "image", "path": str(IMAGE)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": text}]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"num_visual_tokens": m},
    )
    labels = inputs["input_ids"].clone()
    labels[:, : -len(answer.answer_ids)] = -100
    log_probabilities = answer.log_probabilities(answer.visual_tokens(answer.patches, m))
    torch.testing.assert_close(-log_probabilities.mean(), model(**inputs, labels=labels).loss, rtol=1e-4, atol=1e-6)


def test_an_answer_of_ones_own(checkpoint):
    model, processor = checkpoint
    own = ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION)
    text = processor.decode(own.answer_ids, skip_special_tokens=True).strip()
    given = ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION, text)
    assert torch.equal(given.answer_ids, own.answer_ids) and given.tokens == own.tokens
    assert ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION, "bag").tokens == ["bag", "</s>"]
    with pytest.raises(ValueError, match="`answer` is ' '"):
        ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION, " ")


def test_the_defaults_of_generation_do_not_matter(checkpoint):
    model, processor = checkpoint
    expected = ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION)
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    model.generation_config.update(num_visual_tokens=1, num_beams=2, return_dict_in_generate=True)
    answer = ImageAnswer.ask(model, processor, Image.open(IMAGE), QUESTION)
    assert torch.equal(answer.prompt_ids, expected.prompt_ids) and answer.tokens == expected.tokens


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="Linear.*MQTLlavaForConditionalGeneration"):
        ImageAnswer.ask(torch.nn.Linear(1, 1), None, None, QUESTION)
