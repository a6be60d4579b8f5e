import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

import mqt_llava
from mqt_llava import QueCCLlavaConfig, QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor
from mqt_llava.conversion import tensor_recipes
from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from tests.builders.original_checkpoints import PROJECTOR, RESAMPLER, VISION, Original, assert_same_tensors
from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME


COMPRESSION = "mm_vision_token_compression_"


@pytest.fixture
def original(tmp_path):
    return Original(tmp_path / "original", QUECC_GOLDEN_NAME)


@pytest.fixture
def main():
    from mqt_llava.conversion.convert_quecc_llava import main

    return main


@pytest.fixture
def expected(converted_quecc):
    return load_file(converted_quecc / "model.safetensors")


# What comes out


def test_tensors_are_the_originals(original, expected):
    new, old = expected, original.tensors
    for kind in ("weight", "bias"):
        joint = torch.cat([new[f"model.resampler.{name}_proj.{kind}"] for name in "qkv"])
        assert torch.equal(joint, old[f"{PROJECTOR}0.clip_attn.in_proj_{kind}"])
        for new_name, old_name in {
            "text_proj": "0.text_projection.0",
            "ln_text": "0.text_projection.1",
            "k_mlp.0": "0.k_proj.0",
            "v_mlp.2": "0.v_proj.2",
            "q_mlp.3": "0.q_proj.3",
            "q_downsample": "0.q_downsample",
            "out_proj": "0.clip_attn.out_proj",
            "proj.0": "1",
            "proj.2": "3",
        }.items():
            assert torch.equal(new[f"model.resampler.{new_name}.{kind}"], old[f"{PROJECTOR}{old_name}.{kind}"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = new[name.replace("model.", "model.language_model.")]
        assert torch.equal(rows[:1000], old[name])
        torch.testing.assert_close(rows[1000:], old[name].mean(0).expand(1, -1))


def test_config_and_processor_say_what_the_model_is(converted_quecc):
    config = QueCCLlavaConfig.from_pretrained(converted_quecc)
    assert config.architectures == ["QueCCLlavaForConditionalGeneration"]
    assert (config.kernel_size, config.num_visual_tokens, config.resampler_num_attention_heads) == (4, 36, 8)
    assert (config.image_token_id, config.text_config.vocab_size, config.dtype) == (1000, 1001, torch.float32)
    processor = QueCCLlavaProcessor.from_pretrained(converted_quecc)
    assert processor.max_visual_tokens == 36
    assert processor.image_processor.do_pad
    assert processor.tokenizer.padding_side == "left"
    saved = json.loads((converted_quecc / "config.json").read_text())
    for name in saved["auto_map"].values():
        assert (converted_quecc / f"{name.split('.')[0]}.py").is_file()


def test_model_card(converted_quecc):
    card = (converted_quecc / "README.md").read_text()
    assert "- quecc-llava\n" in card and "conversion/convert_quecc_weights_to_hf.py" in card
    assert "here 36 per image" in card
    assert "num_visual_tokens" not in card, "there is no choice"


@pytest.mark.parametrize("select_layer, kept", [(-1, 24), (-2, 23), (-5, 23), (6, 23)])
def test_vision_layers(original, convert, select_layer, kept):
    """Layers above all that are used are not stored, and those that are used are the original's."""
    original.config["mm_vision_select_layer"] = select_layer
    folder = convert(original.save().folder, "--check")
    names = CheckpointReader(folder).keys()
    layers = {int(name.split(".")[4]) for name in names if "vision_tower.encoder.layers." in name}
    assert layers == set(range(kept))
    config = QueCCLlavaConfig.from_pretrained(folder)
    assert (config.vision_config.num_hidden_layers, config.vision_context_layers) == (kept, [12, 16, 22, 23])

    vision_tower = CLIPVisionModel(CLIPVisionConfig.from_pretrained(original.vision_tower)).eval()
    prefix = VISION + "vision_model."
    vision_tower.load_state_dict({name.removeprefix(prefix): x for name, x in original.part(prefix).items()})
    pixel_values = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    model = QueCCLlavaForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        states = vision_tower(pixel_values, output_hidden_states=True).hidden_states
        _, patches = model.model.encode_patches(pixel_values)
    for layer, actual in zip([select_layer, 12, 16, 22, 23], patches, strict=True):
        torch.testing.assert_close(actual, states[layer][:, 1:])


def test_dtype(original, convert, expected):
    folder = convert(original.folder, "--dtype", "bfloat16", "--check")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    name = "model.resampler.q_proj.weight"
    assert torch.equal(tensors[name], expected[name].bfloat16())
    assert QueCCLlavaConfig.from_pretrained(folder).dtype == torch.bfloat16


def test_output_in_shards(original, convert, expected, capsys):
    folder = convert(original.folder, "--max-shard-size", "1MB", "--check")
    assert f"all {len(expected)} tensors equal their sources" in capsys.readouterr().out
    assert len(list(folder.glob("model-*.safetensors"))) > 4
    assert_same_tensors(folder, expected)
    model = QueCCLlavaForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"])


LOAD_WITHOUT_THE_PACKAGE = """
import json, sys
import torch
from PIL import Image

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mqt_llava":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())

from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
folder, image, prompt = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open(image), text=prompt, return_tensors="pt")
generated = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1]:]
print("RESULT", json.dumps([type(model).__name__, type(model).__module__.split(".")[0], generated.tolist()]))
"""


def test_a_converted_folder_loads_without_the_package(converted_quecc, tmp_path):
    fixture = FIXTURES / QUECC_GOLDEN_NAME
    case = json.loads((fixture / "golden.json").read_text())["cases"][-1]
    run = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_THE_PACKAGE]
        + [str(converted_quecc), str(fixture / "images" / case["image"]), case["prompt"]],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    expected = load_file(fixture / "golden.safetensors")[f"{case['key']}.generated"][1:].tolist()
    result = json.loads(run.stdout.split("RESULT", 1)[1])
    assert result == ["QueCCLlavaForConditionalGeneration", "transformers_modules", expected]
    for file in converted_quecc.glob("*.py"):
        assert file.read_text() == (Path(mqt_llava.__file__).parent / "models" / file.name).read_text()


# What goes in


def test_vision_tower_outside(original, convert, expected):
    vision = {name.removeprefix(VISION): tensor for name, tensor in original.part(VISION).items()}
    torch.save(vision, original.vision_tower / "pytorch_model.bin")
    original.tensors = {name: tensor for name, tensor in original.tensors.items() if not name.startswith(VISION)}
    tower = original.save().vision_tower.rename(original.folder.parent / "clip")
    assert_same_tensors(convert(original.folder, "--vision-tower", tower, "--check"), expected)


@pytest.fixture
def stage_1(original, tmp_path):
    """The original after stage 1 with its vision tower beside it, and its language model."""
    vision = {name.removeprefix(VISION): tensor for name, tensor in original.part(VISION).items()}
    torch.save(vision, original.vision_tower / "pytorch_model.bin")
    return original.to_stage_1(PROJECTOR, tmp_path / "vicuna"), tmp_path / "vicuna"


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_stage_1(stage_1, convert, expected, prefix):
    original, language_model = stage_1
    tensors = {prefix + name: tensor for name, tensor in original.tensors.items()}
    torch.save(tensors, original.folder / "mm_projector.bin")
    assert_same_tensors(convert(original.folder, "--language-model", language_model, "--check"), expected)


def test_stage_1_needs_its_language_model(stage_1, refused):
    original, language_model = stage_1
    torch.save(original.tensors, original.folder / "mm_projector.bin")
    assert "holds a stage-1 mm_projector.bin alone. Pass --language-model" in refused(original.folder)
    del original.tensors[PROJECTOR + "0.text_projection.1.bias"]
    torch.save(original.tensors, original.folder / "mm_projector.bin")
    message = refused(original.folder, "--language-model", language_model)
    assert f"missing tensors: {PROJECTOR}0.text_projection.1.bias." in message


def test_language_model_without_stage_1(original, refused):
    assert "has no mm_projector.bin" in refused(original.folder, "--language-model", original.vision_tower)


@pytest.mark.parametrize("kernel_size, tokens", [(6, 16), (12, 4), (24, 1)])
def test_other_kernels(original, convert, kernel_size, tokens):
    original.tensors[PROJECTOR + "0.q_downsample.weight"] = torch.randn(64, 1, kernel_size, kernel_size)
    original.config |= {COMPRESSION + "kernel_size": kernel_size, COMPRESSION + "stride": kernel_size}
    folder = convert(original.save().folder)
    assert QueCCLlavaConfig.from_pretrained(folder).num_visual_tokens == tokens
    processor = QueCCLlavaProcessor.from_pretrained(folder)
    image = Image.open(FIXTURES / QUECC_GOLDEN_NAME / "images" / "square.png")
    inputs = processor(images=image, text="USER: <image>\nWhat is it? ASSISTANT:", return_tensors="pt")
    model = QueCCLlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        assert model(**inputs).image_hidden_states.shape == (tokens, 96)


def test_settings_that_the_original_has_defaults_for(original, convert, expected):
    for name in (COMPRESSION + "kernel_size", COMPRESSION + "stride", "mm_vision_output_token_count"):
        del original.config[name]
    assert_same_tensors(convert(original.save().folder), expected)


# What is refused


@pytest.mark.parametrize(
    "name",
    [
        PROJECTOR + "0.text_projection.0.weight",
        PROJECTOR + "0.clip_attn.in_proj_weight",
        PROJECTOR + "0.q_downsample.bias",
        PROJECTOR + "3.bias",
        VISION + "vision_model.encoder.layers.22.mlp.fc1.weight",
        "model.norm.weight",
    ],
)
def test_missing_tensor(original, refused, name):
    del original.tensors[name]
    assert f"missing tensors: {name}." in refused(original.save().folder)


def test_missing_text_projection(original, refused):
    missing = sorted(original.part(PROJECTOR + "0.text_projection."))
    original.tensors = {name: tensor for name, tensor in original.tensors.items() if name not in missing}
    assert f"missing tensors: {', '.join(missing)}." in refused(original.save().folder)


@pytest.mark.parametrize("name", [PROJECTOR + "0.surprise", PROJECTOR + "4.weight", "model.image_newline"])
def test_unknown_tensor(original, refused, name):
    original.tensors[name] = torch.ones(3)
    assert f"unknown tensors: {name}." in refused(original.save().folder)


@pytest.mark.parametrize(
    "name, shape",
    [
        (PROJECTOR + "0.k_proj.0.weight", (64, 192)),
        (PROJECTOR + "0.clip_attn.in_proj_weight", (190, 64)),
        (PROJECTOR + "0.q_downsample.weight", (64, 1, 6, 6)),
        (PROJECTOR + "1.weight", (96, 96)),
    ],
)
def test_wrong_shape(original, refused, name, shape):
    original.tensors[name] = torch.ones(shape)
    assert f"wrong shapes: {name} {list(shape)}" in refused(original.save().folder)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({COMPRESSION + "type": None}, "compression_type is None, but only 'quecc' can be converted"),
        ({COMPRESSION + "type": "tokenpacker"}, "compression_type is 'tokenpacker', but only 'quecc'"),
        ({COMPRESSION + "stride": 2}, "kernel_size is 4 and its mm_vision_token_compression_stride 2"),
        ({COMPRESSION + "kernel_size": 5, COMPRESSION + "stride": 5}, "`kernel_size` is 5, but must divide"),
        ({COMPRESSION + "kernel_size": "4", COMPRESSION + "stride": "4"}, "`kernel_size` is '4', but must be an int"),
        ({"mm_vision_output_text_embedding_size": 768}, "is 768, but the language model's hidden size is 96"),
        ({"mm_vision_output_token_count": 577}, "is 577, but the vision tower's number of patches is 576"),
        ({"mm_vision_select_feature": "cls_patch"}, "select_feature is 'cls_patch', but only 'patch'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear', but only 'mlp2x_gelu'"),
        ({"mm_vision_select_layer": -25}, "allowed are -24..-1 and 1..24"),
    ],
)
def test_settings_that_cannot_be_converted(original, refused, settings, message):
    original.config |= settings
    assert message in refused(original.save().folder)


def test_vision_tower_with_too_few_layers(original, refused):
    config = json.loads((original.vision_tower / "config.json").read_text()) | {"num_hidden_layers": 12}
    (original.vision_tower / "config.json").write_text(json.dumps(config))
    assert "reads layers 12, 16, 22, 23 of the vision tower, which has 12" in refused(original.folder)


def test_checkpoint_of_the_other_kind(original, refused):
    message = refused(FIXTURES / GOLDEN_NAMES[0])
    assert "is a checkpoint of MQT-LLaVA, not of QueCC-LLaVA" in message
    assert "Use conversion/convert_mqt_llava_weights_to_hf.py." in message
    torch.save({RESAMPLER + "query": torch.ones(256, 64)}, original.without_weights().folder / "query_abstractor.bin")
    assert "convert_mqt_llava_weights_to_hf.py" in refused(original.folder)
    assert "convert_mqt_llava_weights_to_hf.py" in refused(original.folder, "--language-model", original.folder.parent)


def test_checkpoint_of_this_kind_for_the_other_command(original, tmp_path):
    from mqt_llava.conversion.convert_mqt_llava import main

    def refused():
        with pytest.raises(SystemExit) as caught:
            main(["--input", str(original.folder), "--output", str(tmp_path / "converted")])
        assert not (tmp_path / "converted").exists()
        return caught.value.code

    assert "is a checkpoint of QueCC-LLaVA, not of MQT-LLaVA" in refused()
    torch.save(original.part(PROJECTOR), original.without_weights().folder / "mm_projector.bin")
    assert "Use conversion/convert_quecc_weights_to_hf.py." in refused()


# Whole or not at all


def test_full_disk(original, convert, monkeypatch, tmp_path):
    folder = convert(original.folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    cook, cooked = tensor_recipes.Recipe.tensor, []

    def cook_some(recipe, dtype):
        cooked.append(recipe)
        if len(cooked) == 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return cook(recipe, dtype)

    monkeypatch.setattr(tensor_recipes.Recipe, "tensor", cook_some)
    with pytest.raises(SystemExit, match="The disk is full"):
        convert(original.folder, "--overwrite", "--dtype", "float16")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    cooked.clear()
    with pytest.raises(SystemExit, match="The disk is full"):
        convert(original.folder, output="another")
    assert {path.name for path in tmp_path.iterdir()} == {"original", "converted"}


def test_check_finds_a_wrong_byte(original, refused, monkeypatch):
    write = tensor_recipes.write_shards

    def write_wrongly(folder, specs, tensor, max_shard_size):
        (file,) = write(folder, specs, tensor, max_shard_size)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(tensor_recipes, "write_shards", write_wrongly)
    assert "written tensors differ from their sources: " in refused(original.folder, "--check")
