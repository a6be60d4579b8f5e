"""The examples of other people's trainers: they run to the end, and what they save can be loaded and answers."""

import importlib.util
import sys

import pytest
import torch
from helpers import REPOSITORY
from PIL import Image
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration


FOLDER = REPOSITORY / "examples" / "train"
CHECKPOINT = REPOSITORY / "model_cards" / "mqt-llava-tiny"
FLAGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"]
FLAGS += ["--disable_tqdm", "true", "--learning_rate", "1e-3"]


@pytest.fixture
def load_example(monkeypatch):
    """Loads a script of the folder, in which scripts import one another."""
    monkeypatch.syspath_prepend(FOLDER)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


def answer(folder, num_visual_tokens=4) -> torch.Tensor:
    model = MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(
        images=Image.open(REPOSITORY / "examples" / "images" / "mosaic_0.png"),
        text="USER: <image>\nWhat is in the top left? ASSISTANT:",
        return_tensors="pt",
    )
    return model.generate(**inputs, num_visual_tokens=num_visual_tokens, max_new_tokens=4, do_sample=False)


def changed_tensors(folder) -> set[str]:
    before = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32").state_dict()
    after = MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype="float32").state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_trl(load_example, tmp_path):
    pytest.importorskip("trl")
    load_example("sft_trl").main([*FLAGS, "--output_dir", str(tmp_path)])
    changed = changed_tensors(tmp_path)
    assert any("resampler" in name for name in changed) and any("language_model" in name for name in changed)
    assert answer(tmp_path).shape[1] > 0


def test_peft(load_example, tmp_path):
    pytest.importorskip("peft")
    load_example("lora_peft").main([*FLAGS, "--output_dir", str(tmp_path)])
    assert (tmp_path / "adapter_model.safetensors").exists()
    changed = changed_tensors(tmp_path / "merged")
    assert changed and not any("vision_tower" in name or "embed_tokens" in name for name in changed)
    assert any("resampler" in name for name in changed) and any("language_model" in name for name in changed)

    # The adapter beside its base answers as the merged checkpoint does.
    from peft import PeftModel

    base = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32")
    adapted = PeftModel.from_pretrained(base, tmp_path).eval()
    merged = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype="float32")
    inputs = {
        "input_ids": torch.tensor([[1, *[base.config.image_token_id] * 4, 5, 6, 7]]),
        "pixel_values": torch.randn(1, 3, 112, 112),
    }
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, merged(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert answer(tmp_path / "merged").shape[1] > 0


@pytest.mark.parametrize("lora", [[], ["--lora_rank", "4"]])
def test_both_stages(load_example, tmp_path, lora):
    """Stage 1, stage 2 on top of what it saved, and the second call of each, which has nothing left to do."""
    import json

    pictures = REPOSITORY / "examples" / "images"
    turns = [{"from": "human", "value": "<image>\nList the items."}, {"from": "gpt", "value": "sneaker, bag"}]
    records = [
        {"id": path.stem, "image": path.name, "conversations": turns} for path in sorted(pictures.glob("*.png"))
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    flags = [
        *FLAGS,
        "--model_name_or_path",
        str(CHECKPOINT),
        "--data_path",
        str(data),
        "--image_folder",
        str(pictures),
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    stages = [
        ("pretrain", [*flags, "--budget", "FixedBudget(16)", "--output_dir", str(first)]),
        (
            "finetune",
            [
                *flags,
                *lora,
                "--budget",
                "LogBudget(16)",
                "--trained_parts_from",
                str(first),
                "--output_dir",
                str(second),
            ],
        ),
    ]
    for name, argv in stages:
        script = load_example(name)
        script.main(argv)
        script.main(argv)
    assert (first / "trained_parts.safetensors").exists()
    if lora:
        assert (second / "adapter_config.json").exists()
    else:
        assert any("language_model" in name for name in changed_tensors(second))
        assert answer(second).shape[1] > 0
