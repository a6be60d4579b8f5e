"""
Memory and time of converting an original checkpoint of 7B size, made of random numbers:

    python benchmarks/convert_7b.py [--folder runs/convert_7b] [--layers 32]

Writes about 14 GB of shards as the original code saves them (float16, vision tower inside, Vicuna's tokenizer replaced
by one of the same size), converts them in a process of its own with `--check`, which compares every tensor with its
source, and watches that process's anonymous memory (RssAnon: mapped input pages can be dropped at any time and do not
count).
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

from harness import REPOSITORY, command_line, machine, save, table


GOLDEN = REPOSITORY / "tests" / "fixtures" / "mqt_llava_original_tiny"
WIDTH, MLP_WIDTH, VOCABULARY, VISION_WIDTH, QUERIES, VISION_LAYERS = 4096, 11008, 32000, 1024, 256, 24
SHARD_BYTES = 5e9


def language_shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (MLP_WIDTH, WIDTH) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (WIDTH, MLP_WIDTH)
        shapes |= {f"{prefix}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def layer_norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (VISION_WIDTH,), f"{name}.bias": (VISION_WIDTH,)}


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def vision_shapes() -> dict[str, tuple[int, ...]]:
    prefix = "model.vision_tower.vision_tower.vision_model."
    shapes = {
        f"{prefix}embeddings.class_embedding": (VISION_WIDTH,),
        f"{prefix}embeddings.patch_embedding.weight": (VISION_WIDTH, 3, 14, 14),
        f"{prefix}embeddings.position_embedding.weight": (577, VISION_WIDTH),
    }
    shapes |= layer_norm(f"{prefix}pre_layrnorm") | layer_norm(f"{prefix}post_layernorm")
    for layer in range(VISION_LAYERS):
        block = f"{prefix}encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            shapes |= linear(f"{block}self_attn.{name}_proj", VISION_WIDTH, VISION_WIDTH)
        shapes |= layer_norm(f"{block}layer_norm1") | layer_norm(f"{block}layer_norm2")
        shapes |= linear(f"{block}mlp.fc1", 4 * VISION_WIDTH, VISION_WIDTH)
        shapes |= linear(f"{block}mlp.fc2", VISION_WIDTH, 4 * VISION_WIDTH)
    return shapes


def resampler_shapes() -> dict[str, tuple[int, ...]]:
    prefix = "model.query_abstractor."
    shapes = {f"{prefix}{name}": (QUERIES, VISION_WIDTH) for name in ("query", "pos_embed")}
    shapes |= {f"{prefix}proj": (VISION_WIDTH, WIDTH), f"{prefix}attn.in_proj_bias": (3 * VISION_WIDTH,)}
    shapes |= {f"{prefix}attn.in_proj_weight": (3 * VISION_WIDTH, VISION_WIDTH)}
    shapes |= linear(f"{prefix}attn.out_proj", VISION_WIDTH, VISION_WIDTH)
    for name in "qkv":
        shapes |= layer_norm(f"{prefix}ln_{name}")
    return shapes


def write_original(folder: Path, num_layers: int) -> None:
    """An original checkpoint of random numbers, shard by shard."""
    import torch  # which the process that is measured imports for itself

    folder.mkdir(parents=True)
    shards, size = [{}], 0
    for name, shape in (language_shapes(num_layers) | vision_shapes() | resampler_shapes()).items():
        size += 2 * math.prod(shape)
        if size > SHARD_BYTES:
            shards.append({})
            size = 2 * math.prod(shape)
        shards[-1][name] = shape

    weight_map = {}
    for index, shapes in enumerate(shards):
        file_name = f"pytorch_model-{index + 1:05d}-of-{len(shards):05d}.bin"
        # All positive half-precision numbers alike, as bits: quicker than drawing numbers.
        tensors = {
            name: torch.randint(0, 0x7C00, shape, dtype=torch.int16).view(torch.float16)
            for name, shape in shapes.items()
        }
        torch.save(tensors, folder / file_name)
        weight_map |= dict.fromkeys(shapes, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    config = json.loads((GOLDEN / "config.json").read_text())
    config |= {
        "hidden_size": WIDTH, "intermediate_size": MLP_WIDTH, "num_hidden_layers": num_layers,
        "vocab_size": VOCABULARY, "num_attention_heads": 32, "num_key_value_heads": 32, "mm_hidden_size": VISION_WIDTH,
        "torch_dtype": "float16", "mm_vision_tower": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        (folder / name).write_bytes((GOLDEN / name).read_bytes())
    write_tokenizer(folder / "tokenizer.model")


def write_tokenizer(path: Path) -> None:
    """The small SentencePiece model, filled up to Vicuna's number of tokens."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((GOLDEN / "tokenizer.model").read_bytes())
    lowest = min(piece.score for piece in model.pieces)
    for index in range(len(model.pieces), VOCABULARY):
        model.pieces.add(piece=f"filler{index}", score=lowest - index, type=1)
    path.write_bytes(model.SerializeToString())


def watch(command: list[str]) -> dict[str, float]:
    """Runs a command, and returns its seconds and its peak of anonymous memory in bytes."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"The conversion failed with status {process.returncode}.")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_rss_anon_bytes": peak}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "convert_7b")
    parser.add_argument("--layers", type=int, default=32, help="layers of the language model; 32 is 7B")
    args = parser.parse_args()

    original, converted = args.folder / "original", args.folder / "converted"
    if not original.exists():
        write_original(original, args.layers)
    script = REPOSITORY / "conversion" / "convert_mqt_llava_weights_to_hf.py"
    command = [sys.executable, str(script), "--input", str(original), "--output", str(converted)]
    result = machine("torch", "transformers")
    result |= watch([*command, "--check", "--overwrite", "--max-shard-size", "2GB"])
    sizes = [path.stat().st_size for path in converted.glob("*.safetensors")]
    result |= {
        "input_bytes": sum(path.stat().st_size for path in original.glob("*.bin")),
        "output_shards": len(sizes),
        "largest_shard_bytes": max(sizes),
    }
    print(json.dumps(result, indent=1))
    save(result, args.output, table("figure | value", [f"{name} | {value}" for name, value in result.items()]))


if __name__ == "__main__":
    main()
