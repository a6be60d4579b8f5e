import pytest

from mqt_llava.conversion import vision_tower
from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.vision_tower import find_vision_tower, infer_vision_config, num_layers_used


class Shapes:
    """What of a reader is needed to infer a config."""

    def __init__(self, shapes):
        self.shapes = shapes

    def keys(self):
        return list(self.shapes)

    def shape(self, name):
        return self.shapes[name]


def clip_shapes(width, num_layers=24):
    return Shapes(
        {
            "vision.embeddings.class_embedding": (width,),
            "vision.embeddings.patch_embedding.weight": (width, 3, 14, 14),
            "vision.embeddings.position_embedding.weight": (577, width),
            **{f"vision.encoder.layers.{layer}.mlp.fc1.weight": (4 * width, width) for layer in range(num_layers)},
        }
    )


def test_config_from_shapes():
    config = infer_vision_config(clip_shapes(1024), "vision.")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1024, 24, 16)
    assert (config.image_size, config.patch_size, config.intermediate_size) == (336, 14, 4096)


def test_heads_that_shapes_do_not_tell():
    with pytest.raises(ConversionError, match="width 64 .* 768, 1024, 1280.*Pass --vision-tower"):
        infer_vision_config(clip_shapes(64), "vision.")


@pytest.mark.parametrize("select_layer, used", [(-2, 23), (-1, 24), (-24, 1), (24, 24), (1, 1)])
def test_layers_used(select_layer, used):
    assert num_layers_used(select_layer, 24) == used


@pytest.mark.parametrize("select_layer", [0, 25, -25])
def test_layers_that_are_not_there(select_layer):
    with pytest.raises(ConversionError, match=r"allowed are -24\.\.-1 and 1\.\.24"):
        num_layers_used(select_layer, 24)


def test_looks_inside_and_beside_the_checkpoint(original):
    beside = original.folder.parent / "openai-clip-tiny"
    assert find_vision_tower(None, "openai-clip-tiny", original.folder, True) == original.vision_tower
    original.vision_tower.rename(beside)
    assert find_vision_tower(None, "openai-clip-tiny", original.folder, True).samefile(beside)
    assert find_vision_tower(str(beside), "elsewhere", original.folder, False).samefile(beside)


@pytest.mark.parametrize("name", ["someone/some-clip", None])
def test_not_found(tmp_path, monkeypatch, name):
    def unreachable(name, what, weights):
        raise ConversionError(f"{what} {name!r} is no folder, and the Hub does not give it either")

    monkeypatch.setattr(vision_tower, "local_folder", unreachable)
    assert find_vision_tower(None, name, tmp_path, has_weights=True) is None
    with pytest.raises(ConversionError, match="mm_vision_tower.*Pass --vision-tower"):
        find_vision_tower(None, name, tmp_path, has_weights=False)
    with pytest.raises(ConversionError, match="--vision-tower 'nowhere' is no folder"):
        find_vision_tower("nowhere", name, tmp_path, has_weights=True)
