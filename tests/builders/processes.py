"""Folders that another process loads by the code that they hold."""

import json
import os
import subprocess
import sys
from pathlib import Path


BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mqt_llava":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""

LOAD = """
import json, sys
import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

folder, resaved, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(1)
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
pipe = pipeline("image-text-to-text", model=folder, **trust)

image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
prompt = "USER: <image>\\nWhat is this? ASSISTANT:"
inputs = processor(images=image, text=prompt, return_tensors="pt", **asked)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
    hidden_states = base(**inputs).last_hidden_state[0, -1]
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]}]
answer = pipe(text=chat, max_new_tokens=6, return_full_text=False, generate_kwargs=asked)
model.save_pretrained(resaved)
processor.save_pretrained(resaved)
print("RESULT", json.dumps({
    "classes": [type(x).__name__ for x in (config, base, model, processor, pipe.model, pipe.processor)],
    "modules": [type(x).__module__.split(".")[0] for x in (config, base, model, processor, pipe.model)],
    "logits": logits.tolist(),
    "hidden_states": hidden_states.tolist(),
    "answer": answer[0]["generated_text"],
}))
"""


def load_elsewhere(
    python, folder: Path | str, resaved: Path, asked: dict, package: str = "blocked", environment: dict | None = None
) -> dict:
    """
    Loads a folder by its own code in another process, answers a question about an image, and saves it again.

    Args:
        folder: A folder, or a Hub id.
        asked: What both the processor and `generate` are asked for besides.
        package: `"blocked"` or `"imported"`.
        environment: Variables by which the process reaches a Hub; by default it reaches none.
    """
    environment = {"HF_MODULES_CACHE": str(resaved.parent / "modules"), **(environment or {"HF_HUB_OFFLINE": "1"})}
    code = (BLOCK if package == "blocked" else "import mqt_llava\n") + LOAD
    arguments = [str(folder), str(resaved), json.dumps(asked)]
    return json.loads(run_python(code, *arguments, python=python, environment=environment, folder=resaved.parent))


def run_python(code: str, *arguments: str, environment: dict, folder: Path, python=sys.executable) -> str:
    """What code that runs in another process, in a folder, prints behind the word RESULT."""
    run = subprocess.run(
        [str(python), "-c", code, *arguments],
        env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.partition("RESULT")[2]
