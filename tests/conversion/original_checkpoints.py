"""Original checkpoints in all the forms in which they come, made from the small golden ones."""

import json
import shutil
from pathlib import Path

import torch
from helpers import FIXTURES, GOLDEN_NAMES


RESAMPLER = "model.query_abstractor."
VISION = "model.vision_tower.vision_tower."


class Original:
    """A copy of a golden checkpoint that a test may change: `tensors` and `config` are written by `save`."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(FIXTURES / GOLDEN_NAMES[0], folder, ignore=shutil.ignore_patterns("golden.*", "images"))
        self.tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        self.config = json.loads((folder / "config.json").read_text())

    @property
    def vision_tower(self) -> Path:
        return self.folder / "openai-clip-tiny"

    def save(self) -> "Original":
        torch.save(self.tensors, self.folder / "pytorch_model.bin")
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self

    def without_weights(self) -> "Original":
        (self.folder / "pytorch_model.bin").unlink()
        return self
