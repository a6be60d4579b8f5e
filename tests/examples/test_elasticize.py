"""examples/train/elasticize.py: from a LLaVA to a model that answers at any number of visual tokens."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from tests.builders.llavas import save_llava
from tests.builders.paths import PICTURES, REPOSITORY
from tests.builders.scripts import load_script
from tests.examples.test_train import FLAGS, write_conversations


TEMPLATE = REPOSITORY / "examples" / "train" / "llava_1_5.jinja"
LORA = ["--lora_rank", "4"]
QLORA = [*LORA, "--load_in_4bit", "true"]


@pytest.fixture
def llava(tmp_path):
    save_llava(tmp_path / "llava")
    write_conversations(tmp_path / "data.json")
    return tmp_path / "llava"


def elasticize(llava, *arguments):
    folder = llava.parent
    argv = [*FLAGS, "--llava_name_or_path", llava, "--max_visual_tokens", 16, "--chat_template", TEMPLATE]
    argv += ["--data_path", folder / "data.json", "--image_folder", PICTURES, "--output_dir", folder / "out"]
    argv += ["--budget", "UniformBudget(1, 16)", "--fit_steps", 3, "--fit_batch_size", 4, "--distillation", "llava"]
    argv += ["--resampler_num_attention_heads", 2, "--save_steps", 1, "--logging_steps", 1]
    load_script("examples/train/elasticize.py").main(list(map(str, [*argv, *arguments])))
    return folder / "out"


@pytest.mark.parametrize("lora", [["--trained_parts", "resampler"], LORA], ids=["frozen", "lora"])
def test_a_llava_becomes_elastic(llava, lora):
    folder = elasticize(llava, *lora)
    history = json.loads((folder / "fit" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    model, processor = (
        each.from_pretrained(folder / "model") for each in (AutoModelForImageTextToText, AutoProcessor)
    )
    source = LlavaForConditionalGeneration.from_pretrained(llava).state_dict()
    changed = {name for name, value in model.state_dict().items() if name in source and not source[name].equal(value)}
    assert processor.chat_template == TEMPLATE.read_text()
    assert bool(changed) == (lora is LORA) and all("language_model.layers" in name for name in changed)
    chat = [{"role": "user", "content": [{"type": "image", "image": Image.open(PICTURES / "mosaic_0.png")}]}]
    for m in (1, 16):
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"num_visual_tokens": m}
        )
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == m
        assert (
            model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
        )


def test_in_bfloat16_what_is_new_learns_in_float32(llava):
    """The layer norms, too, which start at 1; saved is what was loaded."""
    options = [
        "--dtype",
        "bfloat16",
        "--bf16",
        "true",
        "--fit_steps",
        6,
        "--fit_learning_rate",
        3e-3,
        "--fit_levels",
        4,
    ]
    folder = elasticize(llava, *options, "--trained_parts", "resampler")
    weights = load_file(folder / "model" / "model.safetensors")
    assert {weight.dtype for name, weight in weights.items() if "positions" not in name} == {torch.bfloat16}
    trained = load_file(folder / "trained_parts.safetensors")
    norm = trained["model.resampler.ln_v.weight"]
    assert norm.dtype == torch.float32 and (norm != 1).any()


def test_called_again_it_goes_on_without_stage_0(llava):
    folder = elasticize(llava, *LORA)
    before = (folder / "fit" / "trainer_state.json").stat().st_mtime_ns
    elasticize(llava, *LORA, "--max_steps", 3)
    assert (folder / "checkpoint-3").exists()
    assert (folder / "fit" / "trainer_state.json").stat().st_mtime_ns == before


def test_in_4_bits_what_was_trained_is_saved(llava):
    pytest.importorskip("bitsandbytes")
    folder = elasticize(llava, *QLORA, "--dtype", "bfloat16", "--bf16", "true")
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--fit_steps", -1], "`fit_steps` is -1, but must be 0 or more"),
        (["--fit_order", "spiral"], "`fit_order` is 'spiral', but must be one of raster, coarse_to_fine"),
        (
            ["--fit_levels", 16, *LORA],
            r"`fit_levels` is \[16\], but must be a list of .* which is 16",
        ),
        (["--chat_template", "nowhere.jinja", *LORA], "`chat_template` is 'nowhere.jinja', but must be a Jinja file"),
        (["--trained_parts", "language_model"], "`trained_parts` names language_model and `lora_rank` is 0"),
        (["--budget", "UniformBudget(1, 17)", *LORA], "`budget` draws up to 17 visual tokens"),
    ],
)
def test_bad_arguments_are_named_before_stage_0(llava, arguments, message):
    with pytest.raises(ValueError, match=message):
        elasticize(llava, *arguments)
    assert not (llava.parent / "out" / "fit").exists()
