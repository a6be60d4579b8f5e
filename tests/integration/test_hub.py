"""The ways in from a folder or the Hub: auto classes, code that travels along, and the pipeline."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

import mqt_llava
from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration, MQTLlavaModel, MQTLlavaProcessor
from tests.builders.configs import tiny_config
from tests.builders.processes import load_elsewhere


MODELS = Path(mqt_llava.__file__).parent / "models"
# What a saved folder holds, by kind of model.
ALL_MODEL_FILES = sorted(path.name for path in MODELS.glob("[!_]*.py"))
MODEL_FILES = [name for name in ALL_MODEL_FILES if "quecc" not in name]
QUESTIONS = ["What is this?", "Tell me a lot more about it."]
ASK = {"max_new_tokens": 6, "return_full_text": False}


def make_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def save(model, processor, folder) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(golden_model, processor, tmp_path_factory):
    return save(golden_model, processor, tmp_path_factory.mktemp("saved") / "model")


# ------------------------------------------------------------------------------------------------- with the package


def test_importing_the_package_registers_the_auto_classes(folder):
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is MQTLlavaConfig
    assert type(AutoConfig.for_model("mqt_llava")) is MQTLlavaConfig
    assert type(AutoModel.from_pretrained(folder)) is MQTLlavaModel
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForPreTraining):
        assert type(auto_class.from_pretrained(folder)) is MQTLlavaForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)) is MQTLlavaProcessor
    assert type(AutoModel.from_config(tiny_config())) is MQTLlavaModel
    assert type(AutoModelForImageTextToText.from_config(tiny_config())) is MQTLlavaForConditionalGeneration


def test_the_parts_of_the_processor_load_by_themselves(folder, processor):
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == processor.tokenizer.get_vocab()
    assert AutoImageProcessor.from_pretrained(folder, backend="pil").size == processor.image_processor.size


@pytest.mark.parametrize("model_class", [MQTLlavaModel, MQTLlavaForConditionalGeneration])
def test_a_saved_folder_names_every_auto_class(model_class, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_mqt_llava.MQTLlavaConfig",
        "AutoModel": "modeling_mqt_llava.MQTLlavaModel",
        "AutoModelForImageTextToText": "modeling_mqt_llava.MQTLlavaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_mqt_llava.MQTLlavaForConditionalGeneration",
        "AutoModelForPreTraining": "modeling_mqt_llava.MQTLlavaForConditionalGeneration",
    }
    assert config["architectures"] == [model_class.__name__]
    assert "auto_map" not in config["vision_config"] and "auto_map" not in config["text_config"]
    assert type(AutoModel.from_pretrained(tmp_path)) is MQTLlavaModel
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is MQTLlavaForConditionalGeneration
    for name in ("configuration_mqt_llava.py", "adaptive_decoding.py", "modeling_mqt_llava.py"):
        assert (tmp_path / name).read_text() == (MODELS / name).read_text()


def test_a_saved_processor_names_its_auto_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_mqt_llava.MQTLlavaProcessor"}
    for name in ("processing_mqt_llava.py", "configuration_mqt_llava.py"):
        assert (tmp_path / name).read_text() == (MODELS / name).read_text()


def test_a_folder_with_everything_holds_every_code_file(folder):
    assert sorted(path.name for path in folder.glob("*.py")) == MODEL_FILES


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, siblings by their file name, also within functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{path.name} imports from outside its folder"
            modules.add(f"{node.module}.py" if node.level else node.module.split(".")[0])
    return modules - sys.stdlib_module_names


@pytest.mark.parametrize("name", ALL_MODEL_FILES)
def test_model_files_import_nothing_but_each_other_torch_transformers_and_pillow(name):
    assert imported_modules(MODELS / name) <= {*ALL_MODEL_FILES, "torch", "transformers", "PIL"}


# ---------------------------------------------------------------------------------------------- without the package

ASKED = {"num_visual_tokens": 4}
CLASS_NAMES = ["MQTLlavaConfig", "MQTLlavaModel", "MQTLlavaForConditionalGeneration", "MQTLlavaProcessor"]
CLASS_NAMES += CLASS_NAMES[2:]


def check_loaded(result: dict, folder: Path) -> None:
    """What another process computed must be what this one computes."""
    model = MQTLlavaForConditionalGeneration.from_pretrained(folder)
    processor = MQTLlavaProcessor.from_pretrained(folder)
    prompt = "USER: <image>\nWhat is this? ASSISTANT:"
    inputs = processor(images=make_image(0), text=prompt, num_visual_tokens=4, return_tensors="pt")
    with torch.no_grad():
        expected = {
            "logits": model(**inputs).logits[0, -1],
            "hidden_states": model.model(**inputs).last_hidden_state[0, -1],
        }
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.tensor(result[name]), tensor, rtol=1e-5, atol=1e-5)
    pipe = pipeline("image-text-to-text", model=folder)
    answer = pipe(text=make_chat(0), generate_kwargs={"num_visual_tokens": 4}, **ASK)
    assert result["answer"] == answer[0]["generated_text"]
    assert result["classes"] == CLASS_NAMES


def test_trust_remote_code_does_no_harm_where_the_package_is_imported(folder, tmp_path):
    result = load_elsewhere(sys.executable, folder, tmp_path / "resaved", ASKED, package="imported")
    assert set(result["modules"]) == {"mqt_llava"}
    check_loaded(result, folder)


def test_a_folder_loads_without_the_package(folder, tmp_path):
    result = load_elsewhere(sys.executable, folder, tmp_path / "resaved", ASKED)
    assert set(result["modules"]) == {"transformers_modules"}
    check_loaded(result, folder)

    # What was loaded that way is saved with code of its own again.
    resaved = tmp_path / "resaved"
    assert sorted(path.name for path in resaved.glob("*.py")) == MODEL_FILES
    for name in ("config.json", "processor_config.json"):
        saved, original = [json.loads((path / name).read_text())["auto_map"] for path in (resaved, folder)]
        assert saved == original
    check_loaded(load_elsewhere(sys.executable, resaved, tmp_path / "again", ASKED), folder)


@pytest.mark.slow
def test_a_folder_loads_in_a_clean_environment(folder, tmp_path):
    import transformers

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={transformers.__version__}", "pillow"]
    install = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if install.returncode != 0:
        pytest.skip(f"pip cannot install {wanted}: {install.stderr[-500:]}")
    check_loaded(load_elsewhere(python, folder, tmp_path / "resaved", ASKED), folder)


# --------------------------------------------------------------------------------------------------------- pipeline


def make_chat(i: int, num_images: int = 1) -> list[dict]:
    images = [{"type": "image", "image": make_image(i + j)} for j in range(num_images)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": QUESTIONS[i]}]}]


def make_prompt(i: int) -> str:
    return f"USER: <image>\n{QUESTIONS[i]} ASSISTANT:"


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("image-text-to-text", model=folder)


def generate(pipe, inputs) -> str:
    """The answer without the pipeline."""
    generated = pipe.model.generate(**inputs, max_new_tokens=6)
    return pipe.processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def answer_chat(pipe, i: int, num_images: int = 1, **kwargs) -> str:
    return generate(
        pipe,
        pipe.processor.apply_chat_template(
            make_chat(i, num_images), add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", processor_kwargs=kwargs,
        ),
    )  # fmt: skip


def answer_prompt(pipe, i: int, **kwargs) -> str:
    return generate(pipe, pipe.processor(images=make_image(i), text=make_prompt(i), return_tensors="pt", **kwargs))


def texts(records: list) -> list[str]:
    return [(record[0] if isinstance(record, list) else record)["generated_text"].strip() for record in records]


BUDGETS = pytest.mark.parametrize(
    "budget, m",
    [
        ({}, None),
        ({"processor_kwargs": {"num_visual_tokens": 4}}, 4),
        ({"generate_kwargs": {"num_visual_tokens": 4}}, 4),
        ({"processor_kwargs": {"num_visual_tokens": 2}, "generate_kwargs": {"num_visual_tokens": 4}}, 4),
    ],
    ids=["default m", "m by processor_kwargs", "m by generate_kwargs", "generate_kwargs win"],
)


@BUDGETS
def test_pipeline_answers_chats(pipe, budget, m):
    expected = [answer_chat(pipe, i, num_visual_tokens=m) for i in range(2)]
    assert expected[0] != answer_chat(pipe, 0, num_visual_tokens=4 if m is None else None), "m changes nothing"
    chats = [make_chat(0), make_chat(1)]

    def ask(text, **kwargs):
        return pipe(text=text, **{key: dict(value) for key, value in budget.items()}, **ASK, **kwargs)

    assert texts([ask(chat) for chat in chats]) == expected
    assert texts(ask(chats)) == expected
    assert texts(ask(chats, batch_size=2)) == expected


@BUDGETS
def test_pipeline_answers_plain_images_and_texts(pipe, budget, m):
    expected = [answer_prompt(pipe, i, num_visual_tokens=m) for i in range(2)]
    images, prompts = [make_image(0), make_image(1)], [make_prompt(0), make_prompt(1)]

    def ask(images, text, **kwargs):
        return pipe(images=images, text=text, **{key: dict(value) for key, value in budget.items()}, **ASK, **kwargs)

    assert texts([ask(image, prompt)[0] for image, prompt in zip(images, prompts)]) == expected
    assert texts(ask(images, prompts)) == expected
    assert texts(ask(images, prompts, batch_size=2)) == expected


def with_numbers(chat: list[dict], *numbers: int) -> list[dict]:
    """The chat with a number of visual tokens in the content item of each image."""
    numbers = iter(numbers)
    return [
        {
            **message,
            "content": [
                {**item, "num_visual_tokens": next(numbers)} if item["type"] == "image" else item
                for item in message["content"]
            ],
        }
        for message in chat
    ]


def test_pipeline_takes_m_from_the_images_items(pipe):
    expected = [answer_chat(pipe, 0, 3, num_visual_tokens=[1, 2, 4]), answer_chat(pipe, 1, num_visual_tokens=4)]
    assert expected != [answer_chat(pipe, 0, 3), answer_chat(pipe, 1)], "m changes nothing"
    chats = [with_numbers(make_chat(0, num_images=3), 1, 2, 4), with_numbers(make_chat(1), 4)]
    for kwargs in ({}, {"processor_kwargs": {"num_visual_tokens": 8}}):
        assert texts([pipe(text=chat, **kwargs, **ASK) for chat in chats]) == expected
        assert texts(pipe(text=chats, **kwargs, **ASK)) == expected
        assert texts(pipe(text=chats, batch_size=2, **kwargs, **ASK)) == expected


def test_what_generate_is_told_goes_before_the_items(pipe, folder):
    expected = [answer_chat(pipe, 0, num_visual_tokens=4)]
    chat = with_numbers(make_chat(0), 256)
    assert expected != texts(pipe(text=chat, **ASK)), "m changes nothing"
    assert texts(pipe(text=chat, generate_kwargs={"num_visual_tokens": 4}, **ASK)) == expected
    asks_four = pipeline("image-text-to-text", model=folder)
    asks_four.model.generation_config.num_visual_tokens = 4
    assert texts(asks_four(text=chat, **ASK)) == expected


def test_pipeline_refuses_a_wrong_m_of_an_item(pipe):
    with pytest.raises(ValueError, match=r"\['num_visual_tokens'\]` is 257, but must be an integer in 1\.\.256"):
        pipe(text=with_numbers(make_chat(0), 257), **ASK)


@pytest.mark.parametrize("m", [None, 4])
def test_pipeline_batches_chats_with_different_numbers_of_images(pipe, m):
    expected = [answer_chat(pipe, 0, num_images=3, num_visual_tokens=m), answer_chat(pipe, 1, num_visual_tokens=m)]
    generate_kwargs = {} if m is None else {"num_visual_tokens": m}
    chats = [make_chat(0, num_images=3), make_chat(1)]
    assert texts(pipe(text=chats, batch_size=2, generate_kwargs=generate_kwargs, **ASK)) == expected


def test_pipeline_of_any_modality(folder, pipe, monkeypatch):
    # It asks for torchvision wherever a model sees images; nothing of ours needs that.
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)
    any_to_any = pipeline("any-to-any", model=folder)
    assert type(any_to_any.model) is type(pipe.model)
    answers = any_to_any(text=make_chat(0), generate_kwargs={"num_visual_tokens": 4}, **ASK)
    assert texts(answers) == [answer_chat(pipe, 0, num_visual_tokens=4)]


def test_pipeline_answers_without_an_image(pipe):
    chat = [{"role": "user", "content": "Hello"}]
    answer = pipe(text=chat, generate_kwargs={"num_visual_tokens": 4}, **ASK)
    inputs = pipe.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert texts(answer) == [generate(pipe, inputs)]


@pytest.mark.parametrize("m", [None, 4])
def test_pipeline_returns_the_full_text_or_the_answer_alone(pipe, m):
    generate_kwargs = {"max_new_tokens": 6} | ({} if m is None else {"num_visual_tokens": m})
    answer = answer_prompt(pipe, 0, num_visual_tokens=m)
    image, prompt = make_image(0), make_prompt(0)
    full = pipe(images=image, text=prompt, generate_kwargs=dict(generate_kwargs), return_full_text=True)
    assert full[0]["generated_text"].startswith(prompt)
    assert full[0]["generated_text"][len(prompt) :].strip() == answer
    alone = pipe(images=image, text=prompt, generate_kwargs=dict(generate_kwargs), return_full_text=False)
    assert alone[0]["generated_text"].strip() == answer
    ids = pipe(images=image, text=prompt, generate_kwargs=dict(generate_kwargs), return_tensors=True)
    prompt_length = pipe.processor(images=image, text=prompt)["input_ids"][0]
    assert len(ids[0]["generated_token_ids"]) == len(prompt_length) + 6

    chat = pipe(text=make_chat(0), generate_kwargs=dict(generate_kwargs))[0]["generated_text"]
    assert chat[:-1] == make_chat(0)
    assert chat[-1]["role"] == "assistant"
    assert chat[-1]["content"].strip() == answer_chat(pipe, 0, num_visual_tokens=m)


def test_pipeline_takes_m_from_the_saved_generation_config(folder, golden_model, processor, tmp_path):
    save(golden_model, processor, tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_visual_tokens": 4}))
    pipe = pipeline("image-text-to-text", model=tmp_path)
    expected = answer_chat(pipeline("image-text-to-text", model=folder), 0, num_visual_tokens=4)
    assert texts(pipe(text=make_chat(0), **ASK)) == [expected]


def test_pipeline_refuses_a_wrong_m(pipe):
    for where in ("processor_kwargs", "generate_kwargs"):
        with pytest.raises(ValueError, match=r"`num_visual_tokens` is 257, but must be an integer in 1\.\.256"):
            pipe(text=make_chat(0), **{where: {"num_visual_tokens": 257}}, **ASK)
