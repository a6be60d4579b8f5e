"""The study of how a LLaVA is made elastic: its scripts, with noise for photos."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


pytestmark = pytest.mark.costly
FOLDER = REPOSITORY / "examples" / "fashion_mosaics"


def run(script, dataset, **options):
    """By itself, since a checkpoint names the classes of the script that wrote it."""
    options = {
        "data_folder": dataset, "max_steps": 2, "per_device_train_batch_size": 4, "warmup_steps": 1, "save_steps": 1,
        "dataloader_num_workers": 0, "use_cpu": True, "disable_tqdm": True, **options,
    }  # fmt: skip
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, FOLDER / script, *flags], check=True, capture_output=True)
    return options["output_dir"]


@pytest.fixture(scope="module")
def llava(dataset, tmp_path_factory):
    return run("train_llava.py", dataset, output_dir=tmp_path_factory.mktemp("study") / "llava", max_steps=3)


@pytest.mark.parametrize(
    "compressor, options",
    [
        ("queries", {"fit_steps": 2, "fit_order": "coarse_to_fine", "distillation": "llava"}),
        pytest.param("average_pooling", {"budget": "FixedBudget(4)"}, marks=pytest.mark.slow),
        pytest.param("scaled_image", {"budget": "FixedBudget(4)"}, marks=pytest.mark.slow),
    ],
)
def test_a_llava_learns_to_be_elastic(llava, dataset, tmp_path, compressor, options):
    folder = run(
        "train_elastic.py", dataset, output_dir=tmp_path / "elastic", llava=llava, compressor=compressor, **options
    )
    before = LlavaForConditionalGeneration.from_pretrained(llava).state_dict()
    after = load_file(folder / "model.safetensors")
    vision = [name for name in after if "vision_tower" in name]
    assert vision and all(torch.equal(before[name], after[name]) for name in vision)
    decoder = [name for name in after if "language_model.layers" in name]
    assert decoder and not any(torch.equal(before[name], after[name]) for name in decoder if "proj" in name)
    argv = ["--model", folder, "--compressor", compressor, "--num-visual-tokens", 1, 4, "--kinds", "presence"]
    results = load_script("examples/fashion_mosaics/evaluate.py").main(
        list(map(str, [*argv, "--mosaics", 2, "--data-folder", dataset]))
    )
    assert set(results["presence"]["accuracy"]) == {1, 4}


def test_the_llava_goes_on_where_it_was_stopped(llava, dataset, tmp_path):
    """Its weights have other names in a checkpoint than in memory."""
    shutil.copytree(llava / "checkpoint-2", tmp_path / "stopped" / "checkpoint-2")
    resumed = run("train_llava.py", dataset, output_dir=tmp_path / "stopped", max_steps=3)
    torch.testing.assert_close(
        *(load_file(folder / "model.safetensors") for folder in (resumed, llava)), rtol=0, atol=0
    )


def test_the_llava_itself_is_evaluated(llava, dataset):
    argv = ["--model", llava, "--kinds", "presence", "--mosaics", 2, "--data-folder", dataset]
    results = load_script("examples/fashion_mosaics/evaluate.py").main(list(map(str, argv)))
    assert set(results["presence"]["accuracy"]) == {64}


@torch.no_grad()
def test_what_needs_no_compressor(llava):
    """At as many tokens as there are patches, both are the LLaVA."""
    make_elastic = load_script("examples/fashion_mosaics/compressors.py").make_elastic
    source, pixels = LlavaForConditionalGeneration.from_pretrained(llava), torch.rand(2, 3, 112, 112)
    expected = source.get_image_features(pixels, return_dict=True).pooler_output
    for name in ("average_pooling", "scaled_image"):
        model = make_elastic(source, name, max_visual_tokens=64)
        for ours, theirs in zip(model.get_image_features(pixels, [64, 64]).pooler_output, expected):
            torch.testing.assert_close(ours, theirs)
    pooled = make_elastic(source, "average_pooling", max_visual_tokens=16).model.resampler
    patches = torch.arange(64.0)[None, :, None].expand(1, 64, 128)
    quarter = patches.unflatten(1, (8, 8))[:, :4, :4].mean((1, 2))
    linear = source.model.multi_modal_projector
    torch.testing.assert_close(pooled(patches, 4)[:, 0], linear(quarter))


@pytest.mark.slow
def test_all_variants_take_the_same_flops(llava, dataset, tmp_path):
    command = [sys.executable, FOLDER / "compare_elastic.py", "--llava", llava, "--output", tmp_path, "--seeds", 1]
    command += ["--data-folder", dataset, "--mosaics", 2, "--share", 30, "--counts", tmp_path / "flops"]
    command += ["--variants", "labels", "qt_4", "--train-flags", "--max_steps", 8]
    command += ["--per_device_train_batch_size", 4, "--save_steps", 1, "--dataloader_num_workers", 0]
    subprocess.run(list(map(str, command)), check=True)
    runs = {run["variant"]: run for run in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    for name, one in runs.items():
        # The last step that no longer fits is left out.
        assert 0.8 * 30 * one["llava_flops"] < one["fit_flops"] + one["flops"] <= 30 * one["llava_flops"], name
    assert runs["labels"]["steps"] > 30
    assert set(runs["qt_4"]["evaluation"]["list"]["accuracy"]) == {"4"}
    assert set(runs["labels"]["evaluation"]["list"]["accuracy"]) == {"1", "2", "4", "8", "16"}
