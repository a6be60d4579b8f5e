import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

import mqt_llava
from mqt_llava import QueCCLlavaConfig, QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor
from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from tests.builders.original_checkpoints import PROJECTOR, QUECC, VISION, assert_same_tensors
from tests.builders.paths import FIXTURES


COMPRESSION = "mm_vision_token_compression_"


@pytest.fixture
def kind():
    return QUECC


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
    code = {path.name: path.read_text() for path in converted_quecc.glob("*.py")}
    assert {f"{name.split('.')[0]}.py" for name in saved["auto_map"].values()} <= set(code)
    for name, text in code.items():
        assert text == (Path(mqt_llava.__file__).parent / "models" / name).read_text()


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


# What goes in


@pytest.mark.parametrize("kernel_size, tokens", [(6, 16), (12, 4), (24, 1)])
def test_other_kernels(original, convert, kernel_size, tokens):
    original.tensors[PROJECTOR + "0.q_downsample.weight"] = torch.randn(64, 1, kernel_size, kernel_size)
    original.config |= {COMPRESSION + "kernel_size": kernel_size, COMPRESSION + "stride": kernel_size}
    folder = convert(original.save().folder)
    assert QueCCLlavaConfig.from_pretrained(folder).num_visual_tokens == tokens
    processor = QueCCLlavaProcessor.from_pretrained(folder)
    image = Image.open(FIXTURES / QUECC / "images" / "square.png")
    inputs = processor(images=image, text="USER: <image>\nWhat is it? ASSISTANT:", return_tensors="pt")
    model = QueCCLlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        assert model(**inputs).image_hidden_states.shape == (tokens, 96)


def test_settings_that_the_original_has_defaults_for(original, convert, expected):
    for name in (COMPRESSION + "kernel_size", COMPRESSION + "stride", "mm_vision_output_token_count"):
        del original.config[name]
    assert_same_tensors(convert(original.save().folder), expected)


# What is refused


def test_missing_text_projection(original, refused):
    missing = sorted(original.part(PROJECTOR + "0.text_projection."))
    original.tensors = {name: tensor for name, tensor in original.tensors.items() if name not in missing}
    assert f"missing tensors: {', '.join(missing)}." in refused(original.save().folder)


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
    original.edit(original.vision_tower / "config.json", num_hidden_layers=12)
    assert "reads layers 12, 16, 22, 23 of the vision tower, which has 12" in refused(original.folder)
