"""Which files are read, from a folder and from the Hub."""

import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import save_file

from mqt_llava.conversion import hub_folders
from tests.builders.original_checkpoints import KINDS, assert_same_tensors


def test_an_unrelated_safetensors_file_beside_an_index_of_bin(original, convert, expected):
    save_file({"other": torch.ones(1)}, original.save_in_shards("bin").folder / "model_other.safetensors")
    assert_same_tensors(convert(original.folder, "--check"), expected)


@pytest.fixture
def hub(original, monkeypatch, tmp_path):
    """A Hub with the original as its only repository, and what was asked of it."""
    cache, asked = tmp_path / "cache", []

    def snapshot_download(name, revision, allow_patterns):
        assert name == "someone/some-model"
        asked.append((revision, allow_patterns))
        for file in original.folder.rglob("*"):
            inside = file.relative_to(original.folder)
            if file.is_file() and any(fnmatch(str(inside), pattern) for pattern in allow_patterns):
                (cache / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, cache / inside)
        return str(cache)

    monkeypatch.setattr(hub_folders, "snapshot_download", snapshot_download)
    cache.mkdir()
    return cache, asked


def test_only_the_weights_are_fetched_from_the_hub(original, convert, hub):
    cache, asked = hub
    save_file({"other": torch.ones(1)}, original.folder / "other.safetensors")
    (original.folder / "optimizer.bin").touch()
    convert("someone/some-model", "--revision", "v1.5")
    fetched = {file.name for file in cache.iterdir()}
    assert "pytorch_model.bin" in fetched and not fetched & {"other.safetensors", "optimizer.bin"}
    assert {revision for revision, _ in asked} == {"v1.5"}


def test_a_stage_1_from_the_hub(original, hub, kind, main, tmp_path):
    file = KINDS[kind].stage_1_file
    original.without_weights().save_stage_1()
    with pytest.raises(SystemExit, match=f"holds a stage-1 {file} alone. Pass --language-model"):
        main(["--input", "someone/some-model", "--output", str(tmp_path / "converted")])
    assert (hub[0] / file).exists()


def test_a_vision_tower_inside_a_repository(original, convert, hub):
    original.move_vision_tower_out()
    convert("someone/some-model", "--check")


def test_a_revision_of_a_folder(original, refused):
    assert "--revision is for a Hub id, but --input" in refused(original.folder, "--revision", "v1.5")


def test_an_input_that_is_no_folder(original, refused, main, tmp_path):
    assert "is a file, but must be a folder or a Hub id" in refused(original.folder / "config.json")
    with pytest.raises(SystemExit, match="--input '' is no folder"):
        main(["--input", "", "--output", str(tmp_path / "converted")])
    with pytest.raises(SystemExit, match="is no folder"):
        main(["--input", "n" * 300, "--output", str(tmp_path / "converted")])
