"""What tools and users of transformers' LLaVA expect of a model of its family, of both compressors."""

import json

import pytest
from helpers import tiny_config, tiny_quecc_config
from transformers import AutoConfig


# ------------------------------------------------------------------------------------------------------ configuration

CONFIGS = pytest.mark.parametrize("make_config", [tiny_config, tiny_quecc_config], ids=["mqt", "quecc"])


@CONFIGS
def test_a_saved_config_names_the_image_token_in_both_ways(make_config, tmp_path):
    config = make_config(image_token_id=7)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["image_token_id"] == saved["image_token_index"] == 7
    for reloaded in (AutoConfig.from_pretrained(tmp_path), type(config).from_dict(saved)):
        assert reloaded.image_token_id == reloaded.image_token_index == 7
        assert json.loads(reloaded.to_json_string()) == saved
    assert AutoConfig.from_pretrained(tmp_path, image_token_id=9).image_token_id == 9
    # What is changed in a copy is not changed back by the other name.
    assert type(config)(**{**config.to_dict(), "image_token_id": 9}).image_token_id == 9


@CONFIGS
@pytest.mark.parametrize("name", ["image_token_id", "image_token_index"])
def test_a_config_whose_two_names_disagree_is_refused(make_config, name, tmp_path):
    make_config(image_token_id=7).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 9}))
    with pytest.raises(ValueError, match="`image_token_id` is . and `image_token_index` is ., but both mean"):
        AutoConfig.from_pretrained(tmp_path)


@CONFIGS
def test_a_config_with_the_older_name_alone_is_read(make_config):
    saved = json.loads(make_config(image_token_id=7).to_json_string())
    del saved["image_token_id"]
    assert type(make_config()).from_dict(saved).image_token_id == 7
