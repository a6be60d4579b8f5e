"""Original checkpoints in all the forms in which they come, made from the small golden ones."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME


MQT, QUECC = GOLDEN_NAMES[0], QUECC_GOLDEN_NAME
RESAMPLER = "model.query_abstractor."
PROJECTOR = "model.mm_projector."
VISION = "model.vision_tower.vision_tower."
# What stands for a file where a repository was cloned without Git LFS.
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976570304\n"


class Kind(NamedTuple):
    """What people call it, its command and script, what its compressor's names begin with, and one of the tensors."""

    title: str
    command: str
    script: str
    prefix: str
    tensor: str
    stage_1_file: str


KINDS = {
    MQT: Kind(
        "MQT-LLaVA", "convert_mqt_llava", "convert_mqt_llava_weights_to_hf.py",
        RESAMPLER, RESAMPLER + "ln_v.bias", "query_abstractor.bin",
    ),
    QUECC: Kind(
        "QueCC-LLaVA", "convert_quecc_llava", "convert_quecc_weights_to_hf.py",
        PROJECTOR, PROJECTOR + "3.bias", "mm_projector.bin",
    ),
}  # fmt: skip


class Original:
    """A copy of a golden checkpoint that a test may change: `tensors` and `config` are written by `save`."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.kind = folder, KINDS[name]
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

    def edit(self, file: str | Path, **changes) -> None:
        """Changes entries of a JSON file."""
        content = json.loads((self.folder / file).read_text())
        self.write(file, json.dumps(content | changes))

    def save_in_shards(self, suffix: str) -> "Original":
        """Instead of the one file, two and their index."""
        save, stem = (save_file, "model") if suffix == "safetensors" else (torch.save, "pytorch_model")
        weight_map, names = {}, list(self.tensors)
        for number, half in enumerate((names[::2], names[1::2]), start=1):
            file = f"{stem}-{number:05d}-of-00002.{suffix}"
            save({name: self.tensors[name] for name in half}, self.folder / file)
            weight_map.update(dict.fromkeys(half, file))
        self.write(f"{stem}.{suffix}.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))
        return self.without_weights()

    def move_vision_tower_out(self) -> dict[str, torch.Tensor]:
        """Into its own folder. Gives its tensors by their names there."""
        vision = {name.removeprefix(VISION): tensor for name, tensor in self.part(VISION).items()}
        torch.save(vision, self.vision_tower / "pytorch_model.bin")
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(VISION)}
        self.save()
        return vision

    def without_weights(self) -> "Original":
        (self.folder / "pytorch_model.bin").unlink()
        return self

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def to_stage_1(self, language_folder: Path) -> "Original":
        """
        Keeps the compressor alone, with the vision tower in its folder, and saves the language model into another as
        transformers does.
        """
        self.move_vision_tower_out()
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
            {name: tensor for name, tensor in self.tensors.items() if not name.startswith(self.kind.prefix)}
        )
        language_model.save_pretrained(language_folder)
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.move(self.folder / name, language_folder / name)
        self.tensors = self.part(self.kind.prefix)
        return self.without_weights().save_stage_1()

    def save_stage_1(self, prefix: str = "") -> "Original":
        """Writes the compressor, under names that begin with `prefix`."""
        tensors = {prefix + name: tensor for name, tensor in self.part(self.kind.prefix).items()}
        torch.save(tensors, self.folder / self.kind.stage_1_file)
        return self


def assert_same_tensors(folder, expected):
    reader = CheckpointReader(folder)
    assert set(reader.keys()) == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(reader.tensor(name), tensor), name


def content(folder: Path) -> dict[Path, bytes | None]:
    """All files and folders in a folder, with the files' bytes."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
