"""Whether an image is like those that a checkpoint was trained on."""

import json
import shutil

import pytest
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor

from mqt_llava.evaluation.known_images import FILE_NAME, KnownImages
from mqt_llava.models.adaptive_budget import checkpoint_digest
from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def image_processor():
    return AutoProcessor.from_pretrained(CHECKPOINT).image_processor


@pytest.fixture(scope="module")
def mosaics():
    return [Image.open(PICTURES / f"mosaic_{number}.png").convert("RGB") for number in range(4)]


def test_the_examples_are_known_and_other_pictures_are_not(model, image_processor, mosaics):
    known = KnownImages.load(str(CHECKPOINT), model)
    larger = [mosaic.resize((300, 300)) for mosaic in mosaics]
    assert (known.distances(model, image_processor, mosaics + larger) <= known.threshold).all()
    others = [ImageOps.invert(mosaics[0]), mosaics[0].crop((0, 0, 56, 56)), Image.new("RGB", (200, 100), "white")]
    assert (known.distances(model, image_processor, others) > known.threshold).all()


def test_a_typical_known_image_has_distance_1(model, image_processor, mosaics, tmp_path):
    images = [mosaic.rotate(angle) for mosaic in mosaics for angle in range(0, 40, 2)]
    known = KnownImages.fit(model, image_processor, images, images, "mosaics at an angle", share=0.25)
    distances = known.distances(model, image_processor, images)
    assert float(distances.square().mean()) == pytest.approx(1, rel=1e-2)
    assert int((distances > known.threshold).sum()) == pytest.approx(len(images) / 4, abs=1)
    # What is written beside a checkpoint is what is read.
    known.save(tmp_path)
    assert KnownImages.load(str(tmp_path), model) == known


def test_only_a_checkpoint_with_the_file_is_affected_and_only_with_its_weights(tmp_path, model):
    assert KnownImages.load(str(tmp_path), model) is None
    shutil.copy(CHECKPOINT / FILE_NAME, tmp_path)
    changed = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    changed.lm_head.weight.data += 1
    with pytest.raises(ValueError, match="made for other weights"):
        KnownImages.load(str(tmp_path), changed)


def test_what_was_measured_is_of_this_checkpoint_and_good_enough(model):
    measured = json.loads((REPOSITORY / "benchmarks" / "results" / FILE_NAME).read_text())
    known = KnownImages.load(str(CHECKPOINT), model)
    assert (measured["checkpoint"], measured["threshold"]) == (checkpoint_digest(model), known.threshold)
    results = measured["results"]
    photographs = [result for name, result in results.items() if name.startswith("photographs in ")]
    number = sum(result["pictures"] for result in photographs)
    assert number > 100 and sum(result["marked"] for result in photographs) >= 0.95 * number
    assert results["held-out mosaics"]["marked"] <= 0.01 * results["held-out mosaics"]["pictures"]
