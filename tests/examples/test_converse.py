"""examples/converse.py against fresh runs on the whole conversation."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.chats import tokenize_chat
from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY
from tests.builders.scripts import load_script


example = load_script("examples/converse.py")
TURNS = ["Is there any footwear?", "What is there most of?", "What is in the top left?", "List the items in column 1."]


@pytest.fixture
def checkpoint():
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("budgets", [(4, 4, 4, 4), (1, 2, 8, 16), (1, 1, 16, 16), (3, 16, 16, 16), (16, 4, 1, 9)])
@pytest.mark.parametrize("picture", ["mosaic_0.png", "mosaic_2.png"])
def test_answers_are_those_of_a_fresh_run(checkpoint, budgets, picture):
    model, processor = checkpoint
    image = Image.open(PICTURES / picture)
    conversation = example.Conversation(model, processor, image, budgets[0])
    encoded, processed = [], []
    model.model.vision_tower.register_forward_hook(lambda *_: encoded.append(1))
    lengths = lambda module, args, kwargs: processed.append(kwargs["inputs_embeds"].shape[1])  # noqa: E731
    hook = model.model.language_model.register_forward_pre_hook(lengths, with_kwargs=True)
    for question, conversation.num_visual_tokens in zip(TURNS, budgets):
        answer = conversation.ask(question)
        assert len(encoded) == 1
        hook.remove()
        asked = {"num_visual_tokens": conversation.num_visual_tokens}
        messages = conversation.messages[:-1]
        inputs = tokenize_chat(processor, messages, add_generation_prompt=True, processor_kwargs=asked)
        fresh = model.generate(**inputs, max_new_tokens=80, do_sample=False)
        encoded.pop()
        assert answer == processor.decode(fresh[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        hook = model.model.language_model.register_forward_pre_hook(lengths, with_kwargs=True)
    if len(set(budgets)) == 1:
        # The prompt is read once, and each answer: no token twice but the one that a turn goes on from.
        assert sum(processed) <= conversation.cache.get_seq_length() + 2 * len(TURNS)


@pytest.mark.parametrize("is_typed", [True, False], ids=["typed", "example"])
def test_the_script_is_a_conversation(is_typed):
    command = [sys.executable, REPOSITORY / "examples" / "converse.py", REPOSITORY / "examples/images/mosaic_0.png"]
    typed = f"{example.EXAMPLE}\n\nnot read any more\n" if is_typed else ""
    command += [] if is_typed else ["--example"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, input=typed).stdout.splitlines()
    assert [line.split()[0] for line in output] == ["1", "4", "16", "16"]
    assert output[2].endswith("What is in the top left?  sneaker")


def test_a_number_that_the_model_does_not_have_ends_nothing(monkeypatch, capsys):
    picture = str(REPOSITORY / "examples/images/mosaic_0.png")
    monkeypatch.setattr(sys, "argv", ["converse.py", picture])
    monkeypatch.setattr(sys, "stdin", ["17\n", "0\n", "What is in the top left?\n"])
    example.main()
    *refused, answer = capsys.readouterr().out.splitlines()
    assert refused == ["This model has 1 to 16 visual tokens."] * 2
    assert answer.split()[0] == "16" and answer.endswith("sneaker")
    monkeypatch.setattr(sys, "argv", ["converse.py", picture, "--num-visual-tokens", "17"])
    with pytest.raises(SystemExit):
        example.main()
    assert "--num-visual-tokens is 17, but this model has 1 to 16" in capsys.readouterr().err
