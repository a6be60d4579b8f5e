import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.output_folder import check_output
from mqt_llava.conversion.shard_writer import write_shards
from mqt_llava.models import modeling_mqt_llava


@pytest.fixture
def written(tmp_path):
    """A folder as a conversion leaves it."""
    folder = tmp_path / "written"
    folder.mkdir()
    for name in ("config.json", "README.md", "chat_template.jinja"):
        (folder / name).write_text("{}")
    shutil.copy(modeling_mqt_llava.__file__, folder)
    write_shards(folder, {"a": (1,)}, torch.float32, lambda name: torch.ones(1), 10**9)
    return folder


def refused(output, overwrite=True, inputs=()):
    with pytest.raises(ConversionError) as caught:
        check_output(str(output), overwrite, inputs)
    return str(caught.value)


def test_a_new_and_an_empty_folder(tmp_path):
    assert check_output(str(tmp_path / "new"), False, [tmp_path]) == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert check_output(str(tmp_path / "empty"), False, []) == tmp_path / "empty"


@pytest.mark.parametrize("output", ["", " ", "\n"])
def test_no_name(output):
    assert "--output is empty" in refused(output)


@pytest.mark.parametrize("output", ["a\0b", "a\udcff", "n" * 300])
def test_impossible_names(output):
    assert "cannot be the name of a folder" in refused(output)


@pytest.mark.parametrize("place", ["here", "home", "input"])
@pytest.mark.parametrize("output", [".", "..", "../..", "/", "link"])
def test_folders_that_are_in_use(tmp_path, monkeypatch, place, output):
    """Empty as they are, so that nothing in them would be lost."""
    used, elsewhere = tmp_path / "up" / "used", tmp_path / "elsewhere"
    used.mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(used)
    monkeypatch.setenv("HOME", str(used if place == "home" else elsewhere))
    monkeypatch.chdir(used if place == "here" else elsewhere)
    output = tmp_path / "link" if output == "link" else os.path.join(used, output)
    assert "is, or contains, the " in refused(output, inputs=[used if place == "input" else elsewhere])


def test_another_name_of_a_used_folder(tmp_path, monkeypatch):
    """As with two mounts of one disk, or a file system that does not tell small from capital letters."""
    used, other = tmp_path / "used", tmp_path / "USED"
    used.mkdir()
    other.mkdir()
    monkeypatch.setattr(os.path, "samefile", lambda *names: set(names) <= {used, other})
    assert "is, or contains, the input" in refused(other, inputs=[used])


def test_a_file_and_a_mounted_disk(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in refused(tmp_path / "file")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    assert "is a mounted disk" in refused(tmp_path / "disk")


def test_what_a_conversion_wrote_is_replaced_if_asked(written):
    assert check_output(str(written), True, []) == written
    assert "is not empty. Pass --overwrite" in refused(written, overwrite=False)


@pytest.mark.parametrize("name", ["notes.txt", "train.py", ".git", "model.bin", "model-1.safetensors", "a.json"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_no_conversion_wrote_is_kept(written, name, overwrite):
    (written / name).write_text("mine")
    assert f"no conversion wrote what is in it: {name}" in refused(written, overwrite)


def test_code_of_the_right_name_that_somebody_else_wrote(written):
    (written / "placeholders.py").write_text("mine")
    assert "no conversion wrote what is in it: placeholders.py" in refused(written)


def test_folders_and_links_of_the_right_names(written):
    (written / "README.md").unlink()
    (written / "README.md").symlink_to(written / "config.json")
    (written / "tokenizer.json").mkdir()
    assert "wrote what is in it: README.md, tokenizer.json" in refused(written)


def test_a_trained_model_is_no_conversions(written):
    """It is saved under the same names."""
    save_file({"a": torch.ones(1)}, written / "model.safetensors", metadata={"format": "pt"})
    assert "wrote what is in it: model.safetensors" in refused(written)
    (written / "model.safetensors").write_bytes(b"damaged")
    assert "wrote what is in it: model.safetensors" in refused(written)
    (written / "model.safetensors").unlink()
    assert "README.md" in refused(written), "without weights anything could be whose it likes"


def test_a_link_to_a_folder_stays_a_link(written, tmp_path):
    (tmp_path / "link").symlink_to(written)
    assert check_output(str(tmp_path / "link"), True, []) == written


def test_names_that_end_in_nothing(written):
    assert check_output(f"{written}/", True, []) == written
    shutil.rmtree(written)
    assert check_output(f"{written}/./", False, []) == written
