"""A LLaVA made elastic, from its folder to a folder of its own, which loads like any other of this package."""

import sys

import pytest
import torch
from transformers import pipeline

from mqt_llava import MQTLlavaProcessor, QueCCLlavaProcessor
from tests.builders.both import BOTH, MQT
from tests.builders.chats import tokenize_chat, user
from tests.builders.llavas import save_llava
from tests.builders.pictures import make_image
from tests.builders.processes import load_elsewhere
from tests.integration.test_hub import MODEL_FILES, QUECC_FILES, asked_of, check_loaded


def make(case, llava, folder):
    """Both parts of it, as saved in the folder."""
    torch.manual_seed(0)
    if case is MQT:
        model = case.model_class.from_llava(llava, max_visual_tokens=16)
        processor = MQTLlavaProcessor.from_llava(llava, max_visual_tokens=16)
    else:
        model = case.model_class.from_llava(llava, kernel_size=2, vision_context_layers=[1, 2])
        processor = QueCCLlavaProcessor.from_llava(llava, max_visual_tokens=4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@torch.no_grad()
@BOTH
@pytest.mark.parametrize(
    "parts", [("llama", "clip_vision_model"), ("qwen2", "siglip_vision_model"), ("gpt_neox", "clip_vision_model")]
)
def test_it_comes_back_from_a_folder_as_it_was(case, parts, tmp_path):
    save_llava(tmp_path / "llava", *parts, template="chatml")
    model, processor = make(case, tmp_path / "llava", tmp_path / "made")
    reloaded, info = case.model_class.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not any(info.values()) and reloaded.config.to_diff_dict() == model.config.to_diff_dict()
    torch.testing.assert_close(reloaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    tied = [x.lm_head.weight is x.get_input_embeddings().weight for x in (model, reloaded)]
    assert tied == [parts[0] == "qwen2"] * 2

    chat, asked = [user(make_image(), "List the items.")], asked_of(tmp_path / "made")
    inputs = tokenize_chat(processor, chat, add_generation_prompt=True, processor_kwargs={**asked})
    # Closely: where tensors lie in memory changes the order of sums.
    torch.testing.assert_close(reloaded(**inputs).logits, model(**inputs).logits)
    ids = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    ask = pipeline("image-text-to-text", model=str(tmp_path / "made"))
    answer = ask(text=chat, max_new_tokens=6, return_full_text=False, generate_kwargs=asked)[0]["generated_text"]
    assert answer.strip() == processor.decode(ids, skip_special_tokens=True).strip() != ""


@BOTH
def test_its_folder_loads_without_the_package(case, tmp_path):
    save_llava(tmp_path / "llava")
    folder = tmp_path / "made"
    make(case, tmp_path / "llava", folder)
    assert sorted(path.name for path in folder.glob("*.py")) == (MODEL_FILES if case is MQT else QUECC_FILES)
    result = load_elsewhere(sys.executable, folder, tmp_path / "resaved", asked_of(folder))
    assert set(result["modules"]) == {"transformers_modules"}
    check_loaded(result, folder)
