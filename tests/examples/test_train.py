"""The examples of other people's trainers: they run to the end, and what they save can be loaded and answers."""

import json
import re

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mqt_llava import MQTLlavaForConditionalGeneration, QueCCLlavaForConditionalGeneration
from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG
from tests.builders.paths import CHECKPOINT, PICTURES, REPOSITORY
from tests.builders.scripts import load_script


FLAGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"]
FLAGS += ["--disable_tqdm", "true", "--learning_rate", "1e-3"]


def answer(folder) -> str:
    """What the picture shows in the top left, if two steps have not spoiled what the checkpoint knew: a sneaker."""
    model = MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(
        images=Image.open(PICTURES / "mosaic_0.png"),
        text="USER: <image>\nWhat is in the top left? ASSISTANT:",
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def training_snippet(contains: str) -> str:
    """The Python block of the page on training that trains with this, for as long as a test can take."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "training.md").read_text(), re.DOTALL)
    (snippet,) = [block for block in blocks if ".train()" in block and contains in block]
    return snippet.replace("trained_parts=", 'max_steps=1, use_cpu=True, report_to="none", trained_parts=')


def write_conversations(path) -> None:
    """LLaVA's JSON about the example pictures."""
    turns = [{"from": "human", "value": "<image>\nList the items."}, {"from": "gpt", "value": "sneaker, bag"}]
    records = [
        {"id": file.stem, "image": file.name, "conversations": turns} for file in sorted(PICTURES.glob("*.png"))
    ]
    path.write_text(json.dumps(records))


def save_parts(folder) -> tuple:
    """Folders of a vision tower and of a decoder."""
    vision, text = folder / "vision", folder / "text"
    CLIPVisionModel(CLIPVisionConfig(**{**VISION_CONFIG, "num_attention_heads": 2})).save_pretrained(vision)
    CLIPImageProcessorPil().save_pretrained(vision)
    AutoProcessor.from_pretrained(CHECKPOINT).tokenizer.save_pretrained(text)
    LlamaForCausalLM(LlamaConfig(**{**TEXT_CONFIG, "vocab_size": 561})).save_pretrained(text)
    return vision, text


def test_the_docs_train_from_a_vision_tower_and_a_decoder(monkeypatch, tmp_path):
    vision, text = save_parts(tmp_path)
    write_conversations(tmp_path / "conversations.json")
    (tmp_path / "images").symlink_to(PICTURES)
    monkeypatch.chdir(tmp_path)
    snippet = training_snippet("from_vision_text_pretrained")
    snippet = snippet.replace("openai/clip-vit-base-patch16", str(vision))
    snippet = snippet.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(text))
    exec(snippet, {})
    assert MQTLlavaForConditionalGeneration.from_pretrained(tmp_path / "runs" / "mine").config.max_visual_tokens == 64


def test_the_docs_train_on_a_dataset(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = load_script("examples/train/pictures.py").load_pictures()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: rows)
    monkeypatch.chdir(tmp_path)
    snippet = training_snippet("load_dataset")
    exec(snippet.replace("model_cards/mqt-llava-tiny", str(CHECKPOINT)), {})
    assert any("resampler" in name for name in changed_tensors(tmp_path / "runs" / "mine"))


def changed_tensors(folder) -> set[str]:
    before = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32").state_dict()
    after = MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype="float32").state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_trl(tmp_path):
    pytest.importorskip("trl")
    load_script("examples/train/sft_trl.py").main([*FLAGS, "--output_dir", str(tmp_path)])
    changed = changed_tensors(tmp_path)
    assert any("resampler" in name for name in changed) and any("language_model" in name for name in changed)
    assert answer(tmp_path) == "sneaker"


def test_peft(tmp_path):
    pytest.importorskip("peft")
    load_script("examples/train/lora_peft.py").main([*FLAGS, "--output_dir", str(tmp_path)])
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
    assert answer(tmp_path / "merged") == "sneaker"


@pytest.mark.parametrize("lora", [[], ["--lora_rank", "4"], ["--lora_rank", "4", "--load_in_4bit", "true"]])
def test_both_stages(tmp_path, lora):
    """Stage 1, stage 2 on top of what it saved, and the second call of each, which has nothing left to do."""
    if "--load_in_4bit" in lora:
        pytest.importorskip("bitsandbytes")
    data, first, second = tmp_path / "data.json", tmp_path / "first", tmp_path / "second"
    write_conversations(data)
    flags = f"--model_name_or_path {CHECKPOINT} --data_path {data} --image_folder {PICTURES}".split()
    stages = [
        ("pretrain", [*flags, *f"--budget FixedBudget(16) --output_dir {first}".split()]),
        (
            "finetune",
            [*flags, *lora, *f"--budget LogBudget(16) --trained_parts_from {first} --output_dir {second}".split()],
        ),
    ]
    for name, argv in stages:
        script = load_script(f"examples/train/{name}.py")
        script.main(argv)
        script.main(argv)
    assert (first / "trained_parts.safetensors").exists()
    if lora:
        assert (second / "adapter_config.json").exists()
    else:
        assert any("language_model" in name for name in changed_tensors(second))
        assert answer(second) == "sneaker"


def test_both_stages_of_quecc(tmp_path):
    """From a vision tower and a decoder to a model that answers."""
    vision, text = save_parts(tmp_path)
    data, first, second = tmp_path / "data.json", tmp_path / "first", tmp_path / "second"
    write_conversations(data)
    flags = f"--vision_tower {vision} --language_model {text} --data_path {data} --image_folder {PICTURES}"
    flags += " --compressor quecc --kernel_size 2 --vision_context_layers 1 2 --resampler_num_attention_heads 4"
    load_script("examples/train/pretrain.py").main([*flags.split(), *FLAGS, "--output_dir", str(first)])
    assert (first / "trained_parts.safetensors").exists()
    load_script("examples/train/finetune.py").main(
        [*flags.split(), *FLAGS, "--trained_parts_from", str(first), "--output_dir", str(second)]
    )
    model = AutoModelForImageTextToText.from_pretrained(second)
    processor = AutoProcessor.from_pretrained(second)
    assert isinstance(model, QueCCLlavaForConditionalGeneration) and processor.max_visual_tokens == 4
    inputs = processor(
        images=Image.open(PICTURES / "mosaic_0.png"),
        text="USER: <image>\nWhat is in the top left? ASSISTANT:",
        return_tensors="pt",
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    assert model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1]
