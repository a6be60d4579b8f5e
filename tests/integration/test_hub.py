"""The ways in from a folder or the Hub: auto classes, code that travels along, and the pipeline."""

import ast
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
    PreTrainedConfig,
    pipeline,
)

import mqt_llava
from mqt_llava import (
    MQTLlavaConfig,
    MQTLlavaForConditionalGeneration,
    MQTLlavaModel,
    MQTLlavaProcessor,
    QueCCLlavaConfig,
    QueCCLlavaForConditionalGeneration,
    QueCCLlavaModel,
    QueCCLlavaProcessor,
)
from tests.builders.chats import PROMPT, tokenize_chat
from tests.builders.configs import tiny_config, tiny_quecc_config
from tests.builders.processes import load_elsewhere


MODELS = Path(mqt_llava.__file__).parent / "models"
ALL_MODEL_FILES = sorted(path.name for path in MODELS.glob("[!_]*.py"))
# What a saved folder holds, by kind of model: no file of MQT-LLaVA's elastic generation is among QueCC-LLaVA's.
MODEL_FILES = [name for name in ALL_MODEL_FILES if "quecc" not in name]
QUECC_FILES = [name for name in ALL_MODEL_FILES if "mqt" not in name and "adaptive" not in name]
QUESTIONS = ["What is this?", "Tell me a lot more about it."]
ASK = {"max_new_tokens": 6, "return_full_text": False}


class Kind(NamedTuple):
    """A saved model, its configuration, model, model with head and processor, and what its folder holds."""

    folder: Path
    classes: tuple[type, ...]
    files: list[str]
    small_config: PreTrainedConfig


@pytest.fixture(params=["mqt", "quecc"])
def kind(request) -> Kind:
    folder = request.getfixturevalue(f"{request.param}_folder")
    if request.param == "mqt":
        classes = (MQTLlavaConfig, MQTLlavaModel, MQTLlavaForConditionalGeneration, MQTLlavaProcessor)
        return Kind(folder, classes, MODEL_FILES, tiny_config())
    classes = (QueCCLlavaConfig, QueCCLlavaModel, QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor)
    return Kind(folder, classes, QUECC_FILES, tiny_quecc_config())


def make_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------- with the package


def test_importing_the_package_registers_the_auto_classes(kind):
    config_class, model_class, model_with_head_class, processor_class = kind.classes
    config = AutoConfig.from_pretrained(kind.folder)
    assert type(config) is type(AutoConfig.for_model(config.model_type)) is config_class
    assert type(AutoModel.from_pretrained(kind.folder)) is model_class
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForPreTraining):
        assert type(auto_class.from_pretrained(kind.folder)) is model_with_head_class
    assert type(AutoProcessor.from_pretrained(kind.folder)) is processor_class
    assert type(AutoModel.from_config(kind.small_config)) is model_class
    assert type(AutoModelForImageTextToText.from_config(kind.small_config)) is model_with_head_class


def test_the_parts_of_the_processor_load_by_themselves(mqt_folder, processor):
    assert AutoTokenizer.from_pretrained(mqt_folder).get_vocab() == processor.tokenizer.get_vocab()
    assert AutoImageProcessor.from_pretrained(mqt_folder, backend="pil").size == processor.image_processor.size


@pytest.mark.parametrize("has_head", [False, True])
def test_a_saved_folder_names_every_auto_class(kind, has_head, tmp_path):
    config_class, model_class, model_with_head_class, _ = kind.classes
    (model_with_head_class if has_head else model_class)(kind.small_config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    name = config["model_type"]
    with_head = f"modeling_{name}.{model_with_head_class.__name__}"
    assert config["auto_map"] == {
        "AutoConfig": f"configuration_{name}.{config_class.__name__}",
        "AutoModel": f"modeling_{name}.{model_class.__name__}",
        "AutoModelForImageTextToText": with_head,
        "AutoModelForMultimodalLM": with_head,
        "AutoModelForPreTraining": with_head,
    }
    assert config["architectures"] == [(model_with_head_class if has_head else model_class).__name__]
    assert "auto_map" not in config["vision_config"] and "auto_map" not in config["text_config"]
    assert type(AutoModel.from_pretrained(tmp_path)) is model_class
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is model_with_head_class


def test_a_saved_processor_names_its_auto_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_mqt_llava.MQTLlavaProcessor"}
    for name in ("processing_mqt_llava.py", "configuration_mqt_llava.py"):
        assert (tmp_path / name).read_text() == (MODELS / name).read_text()


def test_a_folder_with_everything_holds_every_code_file(kind):
    assert sorted(path.name for path in kind.folder.glob("*.py")) == kind.files
    assert all((kind.folder / name).read_text() == (MODELS / name).read_text() for name in kind.files)


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


def asked_of(folder) -> dict:
    """A number of visual tokens, where the model has a choice."""
    return {"num_visual_tokens": 4} if AutoConfig.from_pretrained(folder).model_type == "mqt_llava" else {}


def check_loaded(result: dict, folder: Path) -> None:
    """What another process computed, as `load_elsewhere` says it, must be what this one computes."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    asked = asked_of(folder)
    inputs = processor(images=make_image(0), text=PROMPT, return_tensors="pt", **asked)
    with torch.no_grad():
        expected = {
            "logits": model(**inputs).logits[0, -1],
            "hidden_states": model.model(**inputs).last_hidden_state[0, -1],
        }
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.tensor(result[name]), tensor, rtol=1e-5, atol=1e-5)
    answer = pipeline("image-text-to-text", model=folder)(text=make_chat(0), generate_kwargs=asked, **ASK)
    assert result["answer"] == answer[0]["generated_text"]
    names = [type(part).__name__ for part in (model.config, model.model, model, processor)]
    assert result["classes"] == [*names, *names[2:]]


def test_trust_remote_code_does_no_harm_where_the_package_is_imported(kind, tmp_path):
    result = load_elsewhere(sys.executable, kind.folder, tmp_path / "resaved", asked_of(kind.folder), "imported")
    assert set(result["modules"]) == {"mqt_llava"}
    check_loaded(result, kind.folder)


def test_a_folder_loads_without_the_package(kind, tmp_path):
    folder, resaved, asked = kind.folder, tmp_path / "resaved", asked_of(kind.folder)
    result = load_elsewhere(sys.executable, folder, resaved, asked)
    assert set(result["modules"]) == {"transformers_modules"}
    check_loaded(result, folder)

    # What was loaded that way is saved with code of its own again.
    assert sorted(path.name for path in resaved.glob("*.py")) == kind.files
    for name in ("config.json", "processor_config.json"):
        saved, original = [json.loads((path / name).read_text())["auto_map"] for path in (resaved, folder)]
        assert saved == original
    result = load_elsewhere(sys.executable, resaved, tmp_path / "again", asked)
    assert set(result["modules"]) == {"transformers_modules"}
    check_loaded(result, folder)


@pytest.mark.slow
def test_a_folder_loads_in_a_clean_environment(mqt_folder, tmp_path):
    import transformers

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"torch=={torch.__version__.split('+')[0]}", f"transformers=={transformers.__version__}", "pillow"]
    install = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if install.returncode != 0:
        pytest.skip(f"pip cannot install {wanted}: {install.stderr[-500:]}")
    result = load_elsewhere(python, mqt_folder, tmp_path / "resaved", asked_of(mqt_folder))
    check_loaded(result, mqt_folder)


# --------------------------------------------------------------------------------------------------------- pipeline


def make_chat(i: int, num_images: int = 1) -> list[dict]:
    images = [{"type": "image", "image": make_image(i + j)} for j in range(num_images)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": QUESTIONS[i]}]}]


def make_prompt(i: int) -> str:
    return f"USER: <image>\n{QUESTIONS[i]} ASSISTANT:"


@pytest.fixture(scope="module")
def pipe(mqt_folder):
    return pipeline("image-text-to-text", model=mqt_folder)


@pytest.fixture(scope="module")
def pipes(pipe, quecc_folder):
    return {"mqt": pipe, "quecc": pipeline("image-text-to-text", model=quecc_folder)}


def generate(pipe, inputs) -> str:
    """The answer without the pipeline."""
    generated = pipe.model.generate(**inputs, max_new_tokens=6)
    return pipe.processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def answer_chat(pipe, chat: list[dict], **kwargs) -> str:
    return generate(pipe, tokenize_chat(pipe.processor, chat, add_generation_prompt=True, processor_kwargs=kwargs))


def answer_prompt(pipe, i: int, **kwargs) -> str:
    return generate(pipe, pipe.processor(images=make_image(i), text=make_prompt(i), return_tensors="pt", **kwargs))


def texts(records: list) -> list[str]:
    return [(record[0] if isinstance(record, list) else record)["generated_text"].strip() for record in records]


BUDGETS = pytest.mark.parametrize(
    "name, budget, m",
    [
        ("mqt", {}, None),
        ("mqt", {"processor_kwargs": {"num_visual_tokens": 4}}, 4),
        ("mqt", {"generate_kwargs": {"num_visual_tokens": 4}}, 4),
        ("mqt", {"processor_kwargs": {"num_visual_tokens": 2}, "generate_kwargs": {"num_visual_tokens": 4}}, 4),
        ("quecc", {}, None),
    ],
    ids=["default m", "m by processor_kwargs", "m by generate_kwargs", "generate_kwargs win", "QueCC"],
)


@BUDGETS
def test_pipeline_answers_chats(pipes, name, budget, m):
    pipe, chats = pipes[name], [make_chat(0), make_chat(1)]
    expected = [answer_chat(pipe, chat, num_visual_tokens=m) for chat in chats]
    if name == "mqt":
        other = answer_chat(pipe, chats[0], num_visual_tokens=4 if m is None else None)
        assert expected[0] != other, "m changes nothing"

    def ask(text, **kwargs):
        return pipe(text=text, **copy.deepcopy(budget), **ASK, **kwargs)

    assert texts([ask(chat) for chat in chats]) == expected
    assert texts(ask(chats)) == expected
    assert texts(ask(chats, batch_size=2)) == expected


@BUDGETS
def test_pipeline_answers_plain_images_and_texts(pipes, name, budget, m):
    pipe = pipes[name]
    expected = [answer_prompt(pipe, i, num_visual_tokens=m) for i in range(2)]
    images, prompts = [make_image(0), make_image(1)], [make_prompt(0), make_prompt(1)]

    def ask(images, text, **kwargs):
        return pipe(images=images, text=text, max_new_tokens=6, **copy.deepcopy(budget), **kwargs)

    alone = {"return_full_text": False}
    assert texts([ask(image, prompt, **alone)[0] for image, prompt in zip(images, prompts)]) == expected
    assert texts(ask(images, prompts, **alone)) == expected
    assert texts(ask(images, prompts, batch_size=2, **alone)) == expected
    full = ask(images[0], prompts[0])[0]["generated_text"]
    assert full.startswith(prompts[0]) and full[len(prompts[0]) :].strip() == expected[0]


def with_numbers(chat: list[dict], *numbers: int) -> list[dict]:
    """The chat with a number of visual tokens in the content item of each image."""
    (message,) = chat
    images = [{**item, "num_visual_tokens": number} for item, number in zip(message["content"], numbers)]
    return [{**message, "content": images + message["content"][len(numbers) :]}]


def test_pipeline_takes_m_from_the_images_items(pipe):
    plain, asked = [make_chat(0, num_images=3), make_chat(1)], ([1, 2, 4], [4])
    expected = [answer_chat(pipe, chat, num_visual_tokens=numbers) for chat, numbers in zip(plain, asked)]
    assert expected != [answer_chat(pipe, chat) for chat in plain], "m changes nothing"
    chats = [with_numbers(chat, *numbers) for chat, numbers in zip(plain, asked)]
    for kwargs in ({}, {"processor_kwargs": {"num_visual_tokens": 8}}):
        assert texts([pipe(text=chat, **kwargs, **ASK) for chat in chats]) == expected
        assert texts(pipe(text=chats, **kwargs, **ASK)) == expected
        assert texts(pipe(text=chats, batch_size=2, **kwargs, **ASK)) == expected


def test_what_generate_is_told_goes_before_the_items(pipe, mqt_folder):
    expected = [answer_chat(pipe, make_chat(0), num_visual_tokens=4)]
    chat = with_numbers(make_chat(0), 256)
    assert expected != texts(pipe(text=chat, **ASK)), "m changes nothing"
    assert texts(pipe(text=chat, generate_kwargs={"num_visual_tokens": 4}, **ASK)) == expected
    asks_four = pipeline("image-text-to-text", model=mqt_folder)
    asks_four.model.generation_config.num_visual_tokens = 4
    assert texts(asks_four(text=chat, **ASK)) == expected


@pytest.mark.parametrize("m", [None, 4])
def test_pipeline_batches_chats_with_different_numbers_of_images(pipe, m):
    generate_kwargs = {} if m is None else {"num_visual_tokens": m}
    chats = [make_chat(0, num_images=3), make_chat(1)]
    expected = [answer_chat(pipe, chat, num_visual_tokens=m) for chat in chats]
    assert texts(pipe(text=chats, batch_size=2, generate_kwargs=generate_kwargs, **ASK)) == expected


def test_pipeline_of_any_modality(mqt_folder, pipe, monkeypatch):
    # It asks for torchvision wherever a model sees images; nothing of ours needs that.
    monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)
    any_to_any = pipeline("any-to-any", model=mqt_folder)
    assert type(any_to_any.model) is type(pipe.model)
    answers = any_to_any(text=make_chat(0), generate_kwargs={"num_visual_tokens": 4}, **ASK)
    assert texts(answers) == [answer_chat(pipe, make_chat(0), num_visual_tokens=4)]


@pytest.mark.parametrize("name, generate_kwargs", [("mqt", {"num_visual_tokens": 4}), ("quecc", {})])
def test_pipeline_answers_without_an_image(pipes, name, generate_kwargs):
    chat = [{"role": "user", "content": "Hello"}]
    answer = pipes[name](text=chat, generate_kwargs=generate_kwargs, **ASK)
    assert texts(answer) == [answer_chat(pipes[name], chat)]


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
    assert chat[-1]["content"].strip() == answer_chat(pipe, make_chat(0), num_visual_tokens=m)


def test_pipeline_takes_m_from_the_saved_generation_config(pipe, mqt_folder, tmp_path):
    shutil.copytree(mqt_folder, tmp_path / "saved")
    path = tmp_path / "saved" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_visual_tokens": 4}))
    asks_four = pipeline("image-text-to-text", model=tmp_path / "saved")
    assert texts(asks_four(text=make_chat(0), **ASK)) == [answer_chat(pipe, make_chat(0), num_visual_tokens=4)]


def test_pipeline_refuses_a_wrong_m(pipe):
    message = r"` is 257, but must be an integer in 1\.\.256"
    for where in ("processor_kwargs", "generate_kwargs"):
        with pytest.raises(ValueError, match="`num_visual_tokens" + message):
            pipe(text=make_chat(0), **{where: {"num_visual_tokens": 257}}, **ASK)
    with pytest.raises(ValueError, match=r"\['num_visual_tokens'\]" + message):
        pipe(text=with_numbers(make_chat(0), 257), **ASK)
