"""The ways in to QueCC-LLaVA from a folder or the Hub: auto classes, code that travels along, and the pipeline."""

import copy
import json
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoProcessor,
    LlavaImageProcessorPil,
    pipeline,
)

from mqt_llava import QueCCLlavaConfig, QueCCLlavaForConditionalGeneration, QueCCLlavaModel, QueCCLlavaProcessor
from tests.builders.configs import TEXT_CONFIG, tiny_quecc_config
from tests.builders.models import random_quecc_model
from tests.builders.processes import load_elsewhere
from tests.integration.test_hub import (
    ASK,
    MODELS,
    QUESTIONS,
    generate,
    make_chat,
    make_image,
    make_prompt,
    save,
    texts,
)


CLASSES = (QueCCLlavaConfig, QueCCLlavaModel, QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor)
# No file of MQT-LLaVA's elastic generation is among what a saved folder holds.
MODEL_FILES = sorted(
    path.name for path in MODELS.glob("[!_]*.py") if "mqt" not in path.name and path.name != "adaptive_decoding.py"
)


@pytest.fixture(scope="module")
def folder(processor, tmp_path_factory):
    tokenizer = copy.deepcopy(processor.tokenizer)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    image_processor = LlavaImageProcessorPil.from_dict({**processor.image_processor.to_dict(), **size})
    config = tiny_quecc_config(
        text_config={**TEXT_CONFIG, "vocab_size": len(tokenizer)}, image_token_id=processor.image_token_id
    )
    model = random_quecc_model(config)
    quecc = QueCCLlavaProcessor(image_processor, tokenizer, max_visual_tokens=config.num_visual_tokens)
    return save(model, quecc, tmp_path_factory.mktemp("saved") / "model")


def test_importing_the_package_registers_the_auto_classes(folder):
    config_class, model_class, model_with_head_class, processor_class = CLASSES
    assert type(AutoConfig.from_pretrained(folder)) is config_class
    assert type(AutoConfig.for_model("quecc_llava")) is config_class
    assert type(AutoModel.from_pretrained(folder)) is model_class
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForPreTraining):
        assert type(auto_class.from_pretrained(folder)) is model_with_head_class
    assert type(AutoProcessor.from_pretrained(folder)) is processor_class
    assert type(AutoModel.from_config(tiny_quecc_config())) is model_class
    assert type(AutoModelForImageTextToText.from_config(tiny_quecc_config())) is model_with_head_class


def test_a_saved_folder_holds_the_code_that_it_needs(folder):
    assert sorted(path.name for path in folder.glob("*.py")) == MODEL_FILES
    assert all((folder / name).read_text() == (MODELS / name).read_text() for name in MODEL_FILES)


@pytest.mark.parametrize("package, module", [("blocked", "transformers_modules"), ("imported", "mqt_llava")])
def test_a_folder_loads_by_its_own_code(folder, package, module, tmp_path):
    resaved = tmp_path / "resaved"
    results = [load_elsewhere(sys.executable, folder, resaved, {}, package)]
    if package == "blocked":
        # What was loaded that way is saved with code of its own again.
        assert sorted(path.name for path in resaved.glob("*.py")) == MODEL_FILES
        for name in ("config.json", "processor_config.json"):
            saved, original = [json.loads((path / name).read_text())["auto_map"] for path in (resaved, folder)]
            assert saved == original
        results.append(load_elsewhere(sys.executable, resaved, tmp_path / "again", {}, package))

    model, processor = (
        QueCCLlavaForConditionalGeneration.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    inputs = processor(images=make_image(0), text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt")
    with torch.no_grad():
        logits, hidden_states = model(**inputs).logits[0, -1], model.model(**inputs).last_hidden_state[0, -1]
    answer = pipeline("image-text-to-text", model=folder)(text=make_chat(0), **ASK)[0]["generated_text"]
    for result in results:
        assert set(result["modules"]) == {module}
        names = [cls.__name__ for cls in CLASSES]
        assert result["classes"] == [*names, *names[2:]]
        torch.testing.assert_close(torch.tensor(result["logits"]), logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(result["hidden_states"]), hidden_states, rtol=1e-5, atol=1e-5)
        assert result["answer"] == answer


# --------------------------------------------------------------------------------------------------------- pipeline


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("image-text-to-text", model=folder)


def answer_chat(pipe, chat: list[dict], **processor_kwargs) -> str:
    """The answer without the pipeline."""
    inputs = pipe.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs=processor_kwargs,
    )  # fmt: skip
    return generate(pipe, inputs)


def test_the_questions_are_of_different_lengths(pipe):
    assert len({len(pipe.tokenizer(question)["input_ids"]) for question in QUESTIONS}) == 2


def test_pipeline_answers_chats(pipe):
    chats = [make_chat(0), make_chat(1)]
    expected = [answer_chat(pipe, chat) for chat in chats]
    assert texts([pipe(text=chat, **ASK) for chat in chats]) == expected
    assert texts(pipe(text=chats, **ASK)) == expected
    assert texts(pipe(text=chats, batch_size=2, **ASK)) == expected


def test_pipeline_answers_plain_images_and_texts(pipe):
    images, prompts = [make_image(0), make_image(1)], [make_prompt(0), make_prompt(1)]
    inputs = [pipe.processor(images=i, text=p, return_tensors="pt") for i, p in zip(images, prompts)]
    expected = [generate(pipe, one) for one in inputs]
    assert texts([pipe(images=i, text=p, **ASK)[0] for i, p in zip(images, prompts)]) == expected
    assert texts(pipe(images=images, text=prompts, **ASK)) == expected
    assert texts(pipe(images=images, text=prompts, batch_size=2, **ASK)) == expected
    full = pipe(images=images[0], text=prompts[0], max_new_tokens=6)[0]["generated_text"]
    assert full.startswith(prompts[0]) and full[len(prompts[0]) :].strip() == expected[0]


def test_pipeline_answers_several_images_and_turns(pipe):
    chat = [
        *make_chat(0, num_images=2),
        {"role": "assistant", "content": "A shoe."},
        *make_chat(1),
        {"role": "assistant", "content": "Two bags."},
        {"role": "user", "content": "And now?"},
    ]
    assert texts(pipe(text=chat, **ASK)) == [answer_chat(pipe, chat)]


def test_pipeline_answers_without_an_image(pipe):
    chat = [{"role": "user", "content": "Hello"}]
    assert texts(pipe(text=chat, **ASK)) == [answer_chat(pipe, chat)]


@pytest.mark.parametrize("query", ["How many are there?", ["How many?", "Where are they?"]], ids=str)
def test_pipeline_takes_the_callers_question(pipe, query, monkeypatch):
    chat = make_chat(0, num_images=2)
    asked = []
    encode = pipe.model.model.encode_questions
    monkeypatch.setattr(pipe.model.model, "encode_questions", lambda ids, mask: asked.append(ids) or encode(ids, mask))
    answer = texts(pipe(text=chat, processor_kwargs={"query": query}, **ASK))
    expected = [query] * 2 if isinstance(query, str) else query
    assert pipe.processor.batch_decode(asked[0], skip_special_tokens=True) == expected
    assert answer == [answer_chat(pipe, chat, query=query)]


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 2}, {"processor_kwargs": {"query": "Where?"}}], ids=str)
def test_pipeline_batches_prompts_with_several_images(pipe, kwargs):
    """Its batches keep the first question of each prompt."""
    query = kwargs.get("processor_kwargs", {})
    for chats in (
        [make_chat(0, num_images=3), make_chat(1)],
        [make_chat(0), make_chat(1, num_images=2)],
        [make_chat(0, num_images=3), make_chat(0)],
        [make_chat(0, num_images=2), make_chat(1, num_images=2)],
    ):
        expected = [answer_chat(pipe, chat, **query) for chat in chats]
        if "num_beams" in kwargs:
            expected = texts(pipe(text=chats, **kwargs, **ASK))
        assert texts(pipe(text=chats, batch_size=2, **kwargs, **ASK)) == expected


def test_pipeline_batches_that_lose_questions_are_refused(pipe):
    """Several of a prompt, where those of another are shorter."""
    message = "has 2 rows for 3 images.*lose rows where a prompt asks several questions"
    for asked in ((0, 1), (1, 0)):
        chats = [[*make_chat(asked[0]), {"role": "assistant", "content": "A shoe."}, *make_chat(asked[1])]]
        expected = [answer_chat(pipe, chat) for chat in [*chats, make_chat(0)]]
        for ordered in ([*chats, make_chat(0)], [make_chat(0), *chats]):
            with pytest.raises(ValueError, match=message):
                pipe(text=ordered, batch_size=2, **ASK)
        assert texts(pipe(text=[*chats, make_chat(0)], **ASK)) == expected
        # None is lost where they are padded to the same length.
        assert texts(pipe(text=chats * 2, batch_size=2, **ASK)) == expected[:1] * 2


@pytest.mark.parametrize("where", ["processor_kwargs", "generate_kwargs"])
def test_pipeline_refuses_another_number_of_visual_tokens(pipe, where):
    with pytest.raises(ValueError, match="`num_visual_tokens` is 2, but every image gets 4 visual tokens"):
        pipe(text=make_chat(0), **{where: {"num_visual_tokens": 2}}, **ASK)
