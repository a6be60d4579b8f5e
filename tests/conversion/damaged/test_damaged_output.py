"""Where the output may go."""

import os

import pytest
import torch

from tests.builders.original_checkpoints import content


def test_an_output_that_would_take_the_current_folder_away(original, main, tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / ".git").mkdir(parents=True)
    monkeypatch.chdir(here)
    for output in ("", ".", "..", "/", str(here), str(tmp_path)):
        before = content(tmp_path)
        with pytest.raises(SystemExit, match="^error: --output is empty|^error: --output .* is, or contains, the "):
            main(["--input", str(original.folder), "--output", output, "--overwrite"])
        assert content(tmp_path) == before


def test_output_that_is_not_empty(original, convert, refused, tmp_path):
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "file").touch()
    for options in ([], ["--overwrite"]):
        assert "no conversion wrote what is in it: file" in refused(original.folder, *options)
    (tmp_path / "converted" / "file").unlink()
    for options in ([], ["--overwrite"], ["--overwrite", "--max-shard-size", "1MB"], ["--overwrite"]):
        folder = convert(original.folder, *options)
    assert "Pass --overwrite to replace it" in refused(original.folder)
    assert not list(folder.glob("model-*")), "shards of the run before are gone"


@pytest.mark.parametrize("output", ["original", "original/openai-clip-tiny", "."])
def test_output_that_is_or_holds_the_input(original, refused, output):
    message = refused(original.folder, "--overwrite", output=output)
    assert "is, or contains, the input" in message or "no conversion wrote what is in it" in message


@pytest.mark.parametrize("output", ["file/converted", "new/" + "n" * 300, "n" * 250, "file"])
def test_output_that_is_impossible(original, refused, tmp_path, output):
    (tmp_path / "file").touch()
    message = refused(original.folder, output=output)
    assert "cannot be made: " in message or "cannot be the name of a folder" in message or "is a file" in message


def test_a_refused_original_leaves_no_folders_on_the_way(original, refused):
    original.tensors["lm_head.weight"][3, 5] = torch.nan
    refused(original.save().folder, output="a/b/converted")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_output_that_may_not_be_written(original, refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "cannot be made: Permission denied" in refused(original.folder, output="closed/converted")
