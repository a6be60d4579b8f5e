"""Ways to save a checkpoint otherwise, and ways to break it."""

import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from .outcomes import EITHER


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


class Checkpoint:
    """
    A copy of an original checkpoint, to be changed and then saved.

    Args:
        expected: What must come of its conversion, unless the change says otherwise.
    """

    def __init__(self, source: Path, tensors: dict[str, torch.Tensor], folder: Path, expected: str):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("golden.*", "images", "pytorch_model.bin"))
        self.folder, self.tensors, self.options, self.expected = folder, dict(tensors), [], expected
        self.config = json.loads((folder / "config.json").read_text())

    def save(self) -> None:
        if not any(path.suffix in (".bin", ".safetensors") for path in self.folder.iterdir()):
            self.save_bin()
        if self.config is not None:
            (self.folder / "config.json").write_text(json.dumps(self.config))

    def save_bin(self, new_format: bool = True) -> Path:
        path = self.folder / "pytorch_model.bin"
        torch.save(self.tensors, path, _use_new_zipfile_serialization=new_format)
        return path


# Other ways to save the same


def as_it_is(rng: Random, copy: Checkpoint) -> None:
    pass


def old_pickle(rng: Random, copy: Checkpoint) -> None:
    copy.save_bin(new_format=False)


def safetensors_file(rng: Random, copy: Checkpoint) -> None:
    save_file({name: tensor.contiguous() for name, tensor in copy.tensors.items()}, copy.folder / "model.safetensors")


def shards(rng: Random, copy: Checkpoint) -> None:
    """With an index or without, and perhaps with a file beside them that is none of them."""
    is_safe, number = rng.random() < 0.5, rng.randint(1, 3)
    stem, suffix = ("model", "safetensors") if is_safe else ("pytorch_model", "bin")
    names, weight_map = list(copy.tensors), {}
    for shard in range(number):
        file = f"{stem}-{shard + 1:05d}-of-{number:05d}.{suffix}"
        part = {name: copy.tensors[name].contiguous() for name in names[shard::number]}
        weight_map |= dict.fromkeys(part, file)
        (save_file if is_safe else torch.save)(part, copy.folder / file)
    if rng.random() < 0.7:
        (copy.folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if rng.random() < 0.4:
        save_file({"unrelated": torch.ones(2)}, copy.folder / "optimizer.safetensors")


def other_dtype(rng: Random, copy: Checkpoint) -> None:
    copy.options += ["--dtype", rng.choice(("float16", "bfloat16", "float32"))]


def small_shards(rng: Random, copy: Checkpoint) -> None:
    copy.options += ["--max-shard-size", rng.choice(("100KB", "1MB"))]


def unknown_setting(rng: Random, copy: Checkpoint) -> None:
    copy.config["added_by_somebody"] = {"what": [1, None]}


# Damage to the weights


def truncated(rng: Random, copy: Checkpoint) -> None:
    path = copy.save_bin()
    content = path.read_bytes()
    path.write_bytes(content[: rng.choice((0, 1, 100, len(content) // 2, len(content) - 1, len(content) - 30))])


def flipped_bits(rng: Random, copy: Checkpoint) -> None:
    """Between the tensors a flipped bit does no harm; in one of them the file's check sum tells."""
    path = copy.save_bin()
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    copy.options.append("--check")
    copy.expected = EITHER


def no_weights(rng: Random, copy: Checkpoint) -> None:
    content = rng.choice((b"", b"not weights\n", POINTER, b"\x80\x02.", b"\0" * 99))
    name = rng.choice(("pytorch_model.bin", "model.safetensors"))
    (copy.folder / name).write_bytes(content)


def no_numbers(rng: Random, copy: Checkpoint) -> None:
    name = used_name(rng, copy)
    tensor = copy.tensors[name].clone()
    tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf"), -float("inf")))
    copy.tensors[name] = tensor


def used_name(rng: Random, copy: Checkpoint) -> str:
    """A tensor that the converted model has: the tower's last layer is left out."""
    last = f"vision_model.encoder.layers.{num_vision_layers(copy.tensors) - 1}."
    return rng.choice([name for name in copy.tensors if last not in name])


def num_vision_layers(tensors: dict) -> int:
    part = "vision_model.encoder.layers."
    return 1 + max(int(name.split(part)[1].split(".")[0]) for name in tensors if part in name)


def missing_tensor(rng: Random, copy: Checkpoint) -> None:
    del copy.tensors[used_name(rng, copy)]


def further_tensor(rng: Random, copy: Checkpoint) -> None:
    copy.tensors[rng.choice(("surprise", "model.surprise", "model.layers.9.mlp.up_proj.weight"))] = torch.ones(2)


def other_shape(rng: Random, copy: Checkpoint) -> None:
    name = used_name(rng, copy)
    tensor = copy.tensors[name]
    copy.tensors[name] = rng.choice((tensor[:-1], tensor[None], torch.cat([tensor, tensor]), torch.ones(())))


def no_tensor(rng: Random, copy: Checkpoint) -> None:
    name = used_name(rng, copy)
    tensor = copy.tensors[name]
    quantized = torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    copy.tensors[name] = rng.choice((None, [1.0], "text", tensor.to("meta"), tensor.to_sparse(), quantized))


def other_container(rng: Random, copy: Checkpoint) -> None:
    path = copy.save_bin()
    containers = (list(copy.tensors.values())[:2], {"model": copy.tensors}, torch.ones(3), {1: torch.ones(2)}, {})
    torch.save(rng.choice(containers), path)


def bad_index(rng: Random, copy: Checkpoint) -> None:
    path = copy.save_bin()
    content = rng.choice(
        ("null", "{}", "[]", '{"weight_map": null}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x.bin"}}',
         "[" * 100_000, "{", '{"weight_map": {"a": "none.bin"}}')
    )  # fmt: skip
    path.with_name(rng.choice(("pytorch_model.bin.index.json", "model.safetensors.index.json"))).write_text(content)


# Damage to what stands beside them


def bad_config(rng: Random, copy: Checkpoint) -> None:
    (copy.folder / "config.json").unlink()
    content = rng.choice((None, "", "null", "[]", "{", "7", "[" * 100_000, "{}"))
    if content is not None:
        (copy.folder / "config.json").write_text(content)
    copy.config = None


def bad_setting(rng: Random, copy: Checkpoint) -> None:
    name, values = rng.choice(
        (
            ("hidden_size", ("64", None, -64, 65, 1.5, [64])),
            ("num_hidden_layers", ("three", None, -1, 2, 4, 1.5, 20_000)),
            ("num_attention_heads", (0, "4", None, 7)),
            ("vocab_size", (999, "many", -5, 10**7)),
            ("intermediate_size", (127, "128")),
            ("mm_vision_tower", (7, "no/such/tower", "../..")),
            ("mm_vision_select_layer", ("-2", 99, -99, 0, None)),
            ("mm_hidden_size", (63, "64")),
            ("rope_theta", ("big",)),
            ("rms_norm_eps", ("small",)),
            ("bos_token_id", (10**6,)),
            ("eos_token_id", (-7, 10**6)),
            ("pad_token_id", (10**6,)),
            ("torch_dtype", ("float31", 7)),
            ("tie_word_embeddings", ("maybe",)),
        )
    )
    copy.config[name] = rng.choice(values)
    copy.options += [] if rng.random() < 0.5 else ["--check"]
    # Some are settings that the conversion does not need; then it must come out right all the same.
    copy.expected = EITHER


def bad_tokenizer(rng: Random, copy: Checkpoint) -> None:
    path = copy.folder / "tokenizer.model"
    content = path.read_bytes()
    what = rng.choice(("empty", "half", "missing", "noise", "empty json"))
    if what == "empty json":
        (copy.folder / "tokenizer.json").write_text("{}")
    if what in ("missing", "empty json"):
        path.unlink()
    else:
        half = content[: len(content) // 2]
        path.write_bytes({"empty": b"", "half": half, "noise": rng.randbytes(2000)}[what])


SAVED_OTHERWISE = (as_it_is, old_pickle, safetensors_file, shards, other_dtype, small_shards, unknown_setting)
DAMAGED = (
    truncated, flipped_bits, flipped_bits, no_weights, no_numbers, missing_tensor, further_tensor, other_shape,
    no_tensor, other_container, bad_index, bad_config, bad_setting, bad_setting, bad_tokenizer,
)  # fmt: skip
