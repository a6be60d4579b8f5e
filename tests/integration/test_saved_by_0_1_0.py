"""What version 0.1.0 saved and converted, at commit 77c2a3a: it loads, and answers as it did then."""

import hashlib
import importlib
import json
import shutil
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME, REPOSITORY
from tests.builders.processes import BLOCK, run_python


SAVED = FIXTURES / "saved_by_0_1_0"
KINDS = {GOLDEN_NAMES[0]: "mqt_llava", QUECC_GOLDEN_NAME: "quecc_llava"}  # by original
ASK = """
import json, sys
from tests.integration.test_saved_by_0_1_0 import ask
tokens, logits = ask(*sys.argv[1:], trust_remote_code=True)
print("RESULT", json.dumps([tokens, {m: rows.tolist() for m, rows in logits.items()}]))
"""


def ask(folder, kind: str, **kwargs) -> tuple[dict, dict]:
    """Greedy tokens and the logits behind the prompts, by number of visual tokens. Nothing of the package is named."""
    asked = json.loads((SAVED / f"{kind}.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()
    processor = AutoProcessor.from_pretrained(folder, **kwargs)
    images = [Image.open(FIXTURES / QUECC_GOLDEN_NAME / "images" / name) for name in asked["images"]]
    tokens, logits = {}, {}
    for m in asked["answers"]:
        numbers = {"num_visual_tokens": int(m)} if kind == "mqt_llava" else {}
        inputs = processor(images=images, text=asked["prompts"], padding=True, return_tensors="pt", **numbers)
        generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        tokens[m] = generated[:, inputs["input_ids"].shape[1] :].tolist()
        with torch.no_grad():
            logits[m] = model(**inputs).logits[:, -1]
    return tokens, logits


@pytest.mark.parametrize("package", ["imported", "blocked"])
@pytest.mark.parametrize("kind", KINDS.values())
def test_saved_models_answer_as_they_did(kind, package, tmp_path):
    """By the code of today, and where the package is not there, by the code in the folder."""
    zipfile.ZipFile(SAVED / f"{kind}.zip").extractall(tmp_path / "saved")
    if package == "imported":
        importlib.import_module("mqt_llava")
        tokens, logits = ask(tmp_path / "saved", kind)
    else:
        environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
        code, folder = BLOCK + ASK, str(tmp_path / "saved")
        tokens, logits = json.loads(run_python(code, folder, kind, environment=environment, folder=tmp_path))
    assert tokens == json.loads((SAVED / f"{kind}.json").read_text())["answers"]
    for m, expected in load_file(SAVED / f"{kind}.safetensors").items():
        torch.testing.assert_close(torch.as_tensor(logits[m]), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=KINDS)
def both(request, converted, converted_quecc, tmp_path):
    """The same original, as it is converted now and as it was then; of the weights then there are checksums."""
    now, then = {**converted, QUECC_GOLDEN_NAME: converted_quecc}[request.param], tmp_path / "then"
    zipfile.ZipFile(SAVED / f"{KINDS[request.param]}.zip").extractall(then)  # tokenizer, chat template and code
    tensors = load_file(now / "model.safetensors")
    digests = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] for name, tensor in tensors.items()}
    assert digests == json.loads((SAVED / request.param / "checksums.json").read_text())
    save_file(tensors, then / "model.safetensors", metadata={"format": "pt"})
    for path in (SAVED / request.param).glob("*config.json"):
        shutil.copy(path, then)
    return request.param, now, then


def test_what_was_converted_answers_as_what_is_converted_now(both):
    name, now, then = both
    answers = [ask(folder, KINDS[name]) for folder in (now, then)]
    assert answers[0][0] == answers[1][0]
    for m, expected in answers[0][1].items():
        torch.testing.assert_close(answers[1][1][m], expected, rtol=0, atol=0)


def test_a_conversion_does_not_overwrite_it(both):
    """It bears no mark yet that would tell it from a model that was trained and saved."""
    name, _, then = both
    main = importlib.import_module(f"mqt_llava.conversion.convert_{KINDS[name]}").main
    before = {path.name: path.read_bytes() for path in then.iterdir()}
    with pytest.raises(SystemExit, match="no conversion wrote what is in it: model.safetensors"):
        main(["--input", str(FIXTURES / name), "--output", str(then), "--overwrite"])
    assert {path.name: path.read_bytes() for path in then.iterdir()} == before
