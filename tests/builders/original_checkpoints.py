"""Original checkpoints in all the forms in which they come, made from the small golden ones."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME


RESAMPLER = "model.query_abstractor."
PROJECTOR = "model.mm_projector."
VISION = "model.vision_tower.vision_tower."
# What stands for a file where a repository was cloned without Git LFS.
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976570304\n"


class Kind(NamedTuple):
    """A command, what the names of its compressor begin with, and one of the tensors."""

    command: str
    prefix: str
    tensor: str
    stage_1_file: str


KINDS = {
    GOLDEN_NAMES[0]: Kind("convert_mqt_llava", RESAMPLER, RESAMPLER + "ln_v.bias", "query_abstractor.bin"),
    QUECC_GOLDEN_NAME: Kind("convert_quecc_llava", PROJECTOR, PROJECTOR + "3.bias", "mm_projector.bin"),
}


class Original:
    """A copy of a golden checkpoint that a test may change: `tensors` and `config` are written by `save`."""

    def __init__(self, folder: Path, name: str = GOLDEN_NAMES[0]):
        self.folder = folder
        shutil.copytree(FIXTURES / name, folder, ignore=shutil.ignore_patterns("golden.*", "images"))
        self.tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        self.config = json.loads((folder / "config.json").read_text())

    @property
    def vision_tower(self) -> Path:
        return self.folder / "openai-clip-tiny"

    def save(self) -> "Original":
        torch.save(self.tensors, self.folder / "pytorch_model.bin")
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return self

    def write(self, name: str | Path, text: str | bytes) -> None:
        """Puts anything into a file."""
        (self.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    def without_weights(self) -> "Original":
        (self.folder / "pytorch_model.bin").unlink()
        return self

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def to_stage_1(self, compressor: str, language_folder: Path) -> "Original":
        """Keeps the compressor alone, and saves the language model into a folder as transformers does."""
        names = "hidden_size intermediate_size num_hidden_layers num_attention_heads rms_norm_eps vocab_size".split()
        language_model = LlamaForCausalLM(
            LlamaConfig(
                **{name: self.config[name] for name in names},
                max_position_embeddings=4096,
                pad_token_id=0,
                dtype=torch.float32,
            )
        )
        language_model.load_state_dict(
            {name: tensor for name, tensor in self.tensors.items() if not name.startswith((VISION, compressor))}
        )
        language_model.save_pretrained(language_folder)
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.move(self.folder / name, language_folder / name)
        self.tensors = self.part(compressor)
        return self.without_weights()


def assert_same_tensors(folder, expected):
    reader = CheckpointReader(folder)
    assert set(reader.keys()) == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(reader.tensor(name), tensor), name


def content(folder: Path) -> dict[Path, bytes | None]:
    """All files and folders in a folder, with the files' bytes."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
