"""Conversations about the pictures in examples/images, and the embedded checkpoint's processor; M is 16."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mqt_llava import MQTLlavaProcessor
from tests.builders.paths import CHECKPOINT, PICTURES


@pytest.fixture(scope="session")
def embedded_processor() -> MQTLlavaProcessor:
    """The embedded checkpoint's; for reading only."""
    return MQTLlavaProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture
def picture() -> Image.Image:
    return Image.open(PICTURES / "mosaic_0.png")


@pytest.fixture
def llava_rows() -> list[dict]:
    """LLaVA's JSON: a conversation of four questions about each of four pictures, and two without a picture."""
    rows = []
    for name, pairs in json.loads((PICTURES / "questions.json").read_text()).items():
        turns = []
        for question, answer in pairs:
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        rows.append({"id": name, "image": name, "conversations": turns})
    for number, question in enumerate(("Is there any footwear?", "List the items.")):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "no"}]
        rows.append({"id": f"text_{number}", "conversations": turns})
    return rows


@pytest.fixture
def picture_folder(tmp_path) -> Path:
    """A folder with the pictures, to which files can be added."""
    for path in PICTURES.glob("*.png"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def llava_json(picture_folder, llava_rows) -> Path:
    """The conversations as a file beside their pictures."""
    path = picture_folder / "conversations.json"
    path.write_text(json.dumps(llava_rows))
    return path
