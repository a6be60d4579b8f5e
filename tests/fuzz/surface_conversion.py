"""Conversions of changed and damaged checkpoints: right weights, or one readable line and nothing left behind."""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME

from .damage import DAMAGED, SAVED_OTHERWISE, Checkpoint, num_vision_layers
from .oracle_weights import converted_tensors
from .outcomes import REFUSED, RIGHT, Outcome, wrong


EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")


@cache
def original_tensors(name: str) -> dict[str, torch.Tensor]:
    return torch.load(FIXTURES / name / "pytorch_model.bin", weights_only=True)


def command(name: str):
    if name == QUECC_GOLDEN_NAME:
        from mqt_llava.conversion.convert_quecc_llava import main
    else:
        from mqt_llava.conversion.convert_mqt_llava import main
    return main


def run_case(rng: Random, log: dict) -> Iterator[Outcome]:
    name = rng.choice((*GOLDEN_NAMES, GOLDEN_NAMES[0], QUECC_GOLDEN_NAME))
    change = rng.choice(SAVED_OTHERWISE if rng.random() < 0.35 else DAMAGED)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        place = Path(place)
        expected = REFUSED if change in DAMAGED else RIGHT
        copy = Checkpoint(FIXTURES / name, original_tensors(name), place / "original", expected)
        change(rng, copy)
        copy.save()
        output, options, expected = place / "converted", list(copy.options), copy.expected
        if rng.random() < 0.12 and expected == RIGHT:
            output, options, expected = bad_output(rng, place, options)
        log.update(checkpoint=name, change=change.__name__, options=options, expected=expected)
        log.update(output=str(output), group=change.__name__ if str(output).endswith("converted") else "output")
        yield convert(name, copy, place, output, options, expected)


def bad_output(rng: Random, place: Path, options: list[str]) -> tuple[Path | str, list[str], str]:
    """Where nothing may be written, since something else is there or nothing can be."""
    precious = place / "precious"
    precious.mkdir()
    (precious / "data.txt").write_text("not to be lost")
    overwrite = ["--overwrite"] if rng.random() < 0.6 else []
    file = precious / "data.txt"
    taken = ("", ".", place / "original", place, precious, file, file / "below")
    output = rng.choice((*taken, place / ("x" * 300), place / "nul\0byte"))
    return output, [*options, *overwrite], REFUSED


def listing(place: Path) -> dict[str, bytes | None]:
    """All that lies in a folder, hidden things too."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in sorted(place.rglob("*"))
    }


def convert(name: str, copy: Checkpoint, place: Path, output, options: list[str], expected: str) -> Outcome:
    """Runs the command line from within the folder, so that whatever it does there is seen."""
    before, home = listing(place), Path.cwd()
    argv = ["--input", str(copy.folder), "--output", str(output), *options]
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command(name)(argv)
    except SystemExit as end:
        outcome = judge_end(end, expected)
    except Exception as error:
        outcome = Outcome("bad error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        if expected == REFUSED:
            return wrong("takes what must be refused")
        return judge_weights(copy, Path(output), options)
    finally:
        os.chdir(home)
    if not place.is_dir() or listing(place) != before:
        changed = set(listing(place).items()) ^ set(before.items()) if place.is_dir() else "everything"
        return wrong(
            f"leaves behind, or takes away: {str(sorted({key for key, _ in changed}))[:300]} ({outcome.message})"
        )
    return outcome


def judge_end(end: SystemExit, expected: str) -> Outcome:
    message = end.code
    if not isinstance(message, str):
        return Outcome("bad error", f"exits with {message!r} and no message")
    if not message.startswith("error: ") or "\n" in message.strip() or len(message) > 2000:
        return Outcome("bad error", f"not one readable line: {message[:400]!r}")
    if expected == RIGHT:
        return wrong(f"refuses a legal checkpoint: {message}")
    return Outcome("refused", message)


def judge_weights(copy: Checkpoint, output: Path, options: list[str]) -> Outcome:
    wanted = options[options.index("--dtype") + 1] if "--dtype" in options else "float32"
    # A setting may say that another layer of the tower is used: then so many layers are expected.
    layers, setting = num_vision_layers(copy.tensors), (copy.config or {}).get("mm_vision_select_layer", -2)
    if not isinstance(setting, int):
        return wrong("takes a vision layer that is no integer")
    used = setting % (layers + 1) if setting < 0 else setting
    is_quecc = any(".mm_projector." in name for name in copy.tensors)
    used = max([used, 23] if is_quecc else [used])
    expected = converted_tensors(copy.tensors, used, getattr(torch, wanted))
    actual = {}
    for file in output.glob("*.safetensors"):
        actual |= load_file(file)
    if actual.keys() != expected.keys():
        return wrong(f"other tensors: {sorted(actual.keys() ^ expected.keys())[:5]}")
    for name, tensor in expected.items():
        if actual[name].dtype != tensor.dtype or not is_same(name, actual[name], tensor):
            return wrong(f"a tensor has other values: '{name}'")
    return Outcome("right")


def is_same(name: str, actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if name not in EMBEDDINGS:
        return torch.equal(actual, expected)
    # The row for `<image>` is a mean, which may be taken before or after rounding.
    return torch.equal(actual[:-1], expected[:-1]) and torch.allclose(actual[-1], expected[-1], rtol=0.02, atol=1e-4)
