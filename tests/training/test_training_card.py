"""What a run sends to the Hub, and what its card says."""

import pytest

from tests.builders.llavas import save_llava
from tests.builders.loopback_hub import LoopbackHub
from tests.builders.paths import CHECKPOINT
from tests.builders.processes import BLOCK, run_python


pytestmark = pytest.mark.costly
TRAIN = """
import sys

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mqt_llava.training import BudgetCollator, ConversationDataset, MQTLlavaTrainer, MQTLlavaTrainingArguments
from mqt_llava.training import UniformBudget

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": "List the items."}, {"role": "assistant", "content": "coat, bag"}]
rows = [{"id": str(i), "messages": messages, "images": [Image.new("RGB", (8, 8))]} for i in range(4)]

def build_trainer(model, folder, parts=("resampler", "language_model"), **kwargs):
    args = MQTLlavaTrainingArguments(
        output_dir=folder, max_steps=1, per_device_train_batch_size=2, learning_rate=1e-3, report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", trained_parts=list(parts), hub_model_id=f"you/{folder}",
    )
    data = ConversationDataset(rows)
    trainer = MQTLlavaTrainer(
        model, args, BudgetCollator(processor, UniformBudget(1, 16)), train_dataset=data, eval_dataset=data, **kwargs
    )
    trainer.train()
    return trainer

"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.commit_folder("someone/tiny", CHECKPOINT)
        yield hub


def test_the_card_of_a_run(hub, tmp_path):
    train = TRAIN + (
        'trainer = build_trainer(model, "whole")\n'
        "trainer.evaluate()\n"
        'trainer.push_to_hub(dataset_tags="someone/data", dataset="Some data", language="en")\n'
    )
    environment = hub.environment(tmp_path / "home")
    run_python(train, "someone/tiny", environment=environment, folder=tmp_path)
    card = hub.card("you/whole")
    assert {"modeling_mqt_llava.py", "processing_mqt_llava.py", "model.safetensors"} <= set(hub.files("you/whole"))
    data = card.data.to_dict()
    assert data["tags"] == ["mqt-llava", "generated_from_trainer"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert (data["base_model"], data["datasets"], data["language"]) == (["someone/tiny"], ["someone/data"], ["en"])
    assert data["license"] == "apache-2.0", "its base's"
    for text in ("# whole\n", "any number from 1 to\n16 per image", "- learning_rate: 0.001", "- Loss: "):
        assert text in card.text
    assert "More information needed" not in card.text and str(tmp_path) not in card.content
    assert hub.run_card("you/whole", tmp_path, BLOCK)


def test_a_card_that_somebody_wrote_stays(hub, tmp_path):
    hub.commit("you/there", {"README.md": b"---\nlicense: mit\n---\n\nOn the Hub.\n"})
    train = TRAIN + (
        'build_trainer(model, "there").push_to_hub()\n'
        'trainer = build_trainer(model, "here")\n'
        'open("here/README.md", "w").write("In the folder.\\n")\n'
        "trainer.push_to_hub()\n"
        "trainer.push_to_hub()\n"
    )
    run_python(train, "someone/tiny", environment=hub.environment(tmp_path / "home"), folder=tmp_path)
    assert hub.card("you/there").text.strip() == "On the Hub."
    assert hub.card("you/here").text.strip() == "In the folder."
    assert "model.safetensors" in hub.files("you/there")


def test_the_card_of_stage_1(hub, tmp_path):
    train = TRAIN + 'build_trainer(model, "stage-1", parts=["resampler"]).push_to_hub()\n'
    run_python(train, "someone/tiny", environment=hub.environment(tmp_path / "home"), folder=tmp_path)
    assert "trained_parts.safetensors" in hub.files("you/stage-1")
    assert "model.safetensors" not in hub.files("you/stage-1")
    assert "holds only what was trained" in hub.card("you/stage-1").text
    assert hub.run_card("you/stage-1", tmp_path)


def test_the_card_of_stage_1_between_two_parts(hub, tmp_path):
    parts = """
import torch
from mqt_llava import MQTLlavaForConditionalGeneration
from transformers import AutoModelForCausalLM, AutoModel

base = model
AutoModel.from_config(base.config.vision_config).push_to_hub("a/tower")
AutoModelForCausalLM.from_config(base.config.text_config).push_to_hub("b/decoder")
model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
    "a/tower", "b/decoder", image_token_id=processor.image_token_id, max_visual_tokens=16, vision_feature_layer=-1,
    resampler_num_attention_heads=8,
)
"""
    train = TRAIN + parts + 'build_trainer(model, "stage-1", parts=["resampler"]).push_to_hub()\n'
    run_python(train, "someone/tiny", environment=hub.environment(tmp_path / "home"), folder=tmp_path)
    card = hub.card("you/stage-1")
    assert card.data.base_model == ["a/tower", "b/decoder"]
    hub.run_card("you/stage-1", tmp_path)  # an untrained model need not say anything


def test_the_card_of_stage_1_of_a_llava(hub, tmp_path):
    save_llava(tmp_path / "llava")
    hub.commit_folder("c/llava", tmp_path / "llava")
    make = """
from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor

model = MQTLlavaForConditionalGeneration.from_llava("c/llava", max_visual_tokens=16)
processor = MQTLlavaProcessor.from_llava("c/llava", max_visual_tokens=16, chat_template=processor.chat_template)
"""
    train = TRAIN + make + 'build_trainer(model, "stage-1", parts=["resampler"]).push_to_hub()\n'
    run_python(train, "someone/tiny", environment=hub.environment(tmp_path / "home"), folder=tmp_path)
    card = hub.card("you/stage-1")
    assert card.data.base_model == ["c/llava"] and 'from_llava(\n    "c/llava",\n' in card.text
    hub.run_card("you/stage-1", tmp_path)


def test_the_card_of_adapters(hub, tmp_path):
    pytest.importorskip("peft")
    train = TRAIN + (
        "from peft import LoraConfig, get_peft_model\n"
        'model = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))\n'
        'build_trainer(model, "adapters").push_to_hub()\n'
    )
    run_python(train, "someone/tiny", environment=hub.environment(tmp_path / "home"), folder=tmp_path)
    card = hub.card("you/adapters")
    assert "adapter_model.safetensors" in hub.files("you/adapters")
    data = card.data.to_dict()
    assert (data["library_name"], data["base_model"]) == ("peft", ["someone/tiny"])
    assert "More Information Needed" not in card.text and "More information needed" not in card.text
    assert hub.run_card("you/adapters", tmp_path, "import mqt_llava")  # its base came without code
