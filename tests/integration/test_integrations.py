"""What transformers and its neighbours do with a model: attention backends, caches, offloading, adapters, ..."""

import subprocess
import sys
from threading import Thread

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from transformers import TextIteratorStreamer, TextStreamer

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.both import MQT, QUECC, image_inputs
from tests.builders.configs import tiny_config
from tests.builders.models import random_model
from tests.builders.paths import FIXTURES, GOLDEN_NAMES
from tests.builders.prompts import IMAGE_TOKEN_ID, random_inputs, text_labels


ROWS = ([4, 4], [2], [])  # visual tokens of the images of each prompt
NEW = {"max_new_tokens": 6}


@pytest.mark.parametrize("case, kwargs", [(MQT, {"num_visual_tokens": 3}), (QUECC, {})], ids=["mqt", "quecc"])
def test_a_compiled_forward_generates_the_same(case, kwargs):
    """Also where graphs break."""
    torch._dynamo.reset()
    model, inputs = case.make_model(), {**case.make_inputs(*case.rows), **kwargs, "max_new_tokens": 4}
    expected = model.generate(**inputs)
    model.forward = torch.compile(model.forward, backend="eager")
    assert torch.equal(model.generate(**inputs, cache_implementation="static"), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(folder)
    return folder


def load(folder, **kwargs) -> MQTLlavaForConditionalGeneration:
    return MQTLlavaForConditionalGeneration.from_pretrained(folder, **kwargs).eval()


@pytest.fixture(scope="module")
def reference(folder):
    """The model as it loads by default, for reading only."""
    return load(folder)


def real_logits(model, inputs: dict) -> torch.Tensor:
    """The logits of the tokens that are no padding."""
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"] == 1]


# -------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    "attn_implementation, vision, text",
    [
        ("eager", "eager", "eager"),
        ("sdpa", "sdpa", "sdpa"),
        ("flex_attention", "flex_attention", "flex_attention"),
        ({"vision_config": "eager", "text_config": "sdpa"}, "eager", "sdpa"),
        ({"vision_config": "sdpa", "text_config": "flex_attention"}, "sdpa", "flex_attention"),
        ({"text_config": "eager"}, "sdpa", "eager"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_set_afterwards", [False, True], ids=["when loading", "set afterwards"])
def test_attention_implementation(folder, reference, attn_implementation, vision, text, is_set_afterwards):
    model = load(folder, **({} if is_set_afterwards else {"attn_implementation": attn_implementation}))
    if is_set_afterwards:
        model.set_attn_implementation(attn_implementation)
    assert model.model.vision_tower.config._attn_implementation == vision
    assert model.model.language_model.config._attn_implementation == text
    if "flex_attention" in (vision, text):
        return  # compiles for a minute, see the next test
    inputs = random_inputs(*ROWS)
    torch.testing.assert_close(real_logits(model, inputs), real_logits(reference, inputs), rtol=1e-4, atol=1e-4)
    expected = reference.generate(**inputs, num_visual_tokens=3, **NEW)
    assert torch.equal(model.generate(**inputs, num_visual_tokens=3, **NEW), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attn_implementation", ["flex_attention", {"vision_config": "sdpa", "text_config": "flex_attention"}], ids=str
)
def test_flex_attention_computes_the_same(folder, reference, attn_implementation):
    # Logits only: on a CPU, torch cannot compile a decoding step with padding, of any model.
    inputs = random_inputs(*ROWS)
    actual = real_logits(load(folder, attn_implementation=attn_implementation), inputs)
    torch.testing.assert_close(actual, real_logits(reference, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", [None, "vision_config", "text_config"])
@pytest.mark.parametrize("number", [2, 3])
def test_flash_attention_is_dispatched(folder, number, part):
    if getattr(transformers.utils, f"is_flash_attn_{number}_available")():
        pytest.skip(f"FlashAttention{number} is installed")
    name = f"flash_attention_{number}"
    with pytest.raises(ImportError, match=f"FlashAttention{number} has been toggled on"):
        load(folder, attn_implementation=name if part is None else {part: name})


# ------------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("m", [None, 4])
def test_streamers_give_the_answer_piece_by_piece(golden_model, processor, capsys, m):
    image = Image.open(FIXTURES / GOLDEN_NAMES[0] / "images" / "landscape.png")
    inputs = processor(images=image, text="USER: <image>\nWhat is this? ASSISTANT:", return_tensors="pt")
    generated = golden_model.generate(**inputs, num_visual_tokens=m, **NEW)
    answer = processor.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    golden_model.generate(**inputs, num_visual_tokens=m, streamer=streamer, **NEW)
    assert capsys.readouterr().out.strip() == answer.strip()

    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    kwargs = {**inputs, "num_visual_tokens": m, "streamer": streamer, **NEW}
    thread = Thread(target=golden_model.generate, kwargs=kwargs)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 2
    assert "".join(pieces).strip() == answer.strip()


# ------------------------------------------------------------------------------------------------ devices and memory

PARTS = ["model.vision_tower", "model.resampler", "model.language_model", "lm_head"]
LAYERS = [f"model.language_model.{name}" for name in ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")]


ALL_ON_DISK = {"device_map": dict.fromkeys(PARTS, "disk")}
RESAMPLER_ON_DISK = {"device_map": {**dict.fromkeys(PARTS, "cpu"), "model.resampler": "disk"}}
DECODER_ON_DISK = {"device_map": {**dict.fromkeys(PARTS, "cpu"), "model.language_model": "disk"}}
A_LAYER_ON_DISK = {"device_map": {**dict.fromkeys([*PARTS[:2], *LAYERS, "lm_head"], "cpu"), LAYERS[2]: "disk"}}
LITTLE_MEMORY = {"device_map": "auto", "max_memory": {"cpu": 60_000}}


@pytest.mark.parametrize(
    "case, kwargs",
    [(MQT, {"device_map": "auto"}), (MQT, LITTLE_MEMORY), (MQT, ALL_ON_DISK), (MQT, RESAMPLER_ON_DISK)]
    + [(MQT, A_LAYER_ON_DISK), (QUECC, ALL_ON_DISK), (QUECC, RESAMPLER_ON_DISK), (QUECC, DECODER_ON_DISK)],
    ids=["auto", "little memory", "all on disk", "resampler on disk", "a decoder layer on disk"]
    + ["quecc, all on disk", "quecc, resampler on disk", "quecc, decoder on disk"],
)
def test_device_map(case, kwargs, tmp_path):
    pytest.importorskip("accelerate")
    model, inputs = case.make_model(), case.make_inputs(*case.rows)
    model.save_pretrained(tmp_path / "model")
    offloaded = case.model_class.from_pretrained(tmp_path / "model", offload_folder=tmp_path / "offloaded", **kwargs)
    if kwargs is LITTLE_MEMORY:
        assert {"cpu", "disk"} <= set(offloaded.hf_device_map.values())
    torch.testing.assert_close(real_logits(offloaded, inputs), real_logits(model, inputs))
    for asked in ({}, {"num_visual_tokens": 2}) if case is MQT else ({},):
        assert torch.equal(offloaded.generate(**inputs, **asked, **NEW), model.generate(**inputs, **asked, **NEW))
    encoded = offloaded.get_image_features(**image_inputs(inputs))
    assert not any(tokens.is_meta for tokens in encoded.pooler_output)


def test_tied_embeddings_are_saved_once(tmp_path):
    model = random_model(tiny_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
        assert "model.language_model.embed_tokens.weight" in file.keys()
    reloaded = load(tmp_path)
    assert reloaded.lm_head.weight is reloaded.get_input_embeddings().weight
    inputs = random_inputs(*ROWS)
    assert torch.equal(real_logits(reloaded, inputs), real_logits(model, inputs))
    reloaded.resize_token_embeddings(110)
    assert reloaded.lm_head.weight is reloaded.get_input_embeddings().weight
    assert reloaded.config.text_config.vocab_size == len(reloaded.lm_head.weight) == 110
    # The new rows leave the old tokens as they were.
    torch.testing.assert_close(real_logits(reloaded, inputs)[:, :100], real_logits(model, inputs))


def test_saving_in_shards(reference, tmp_path):
    reference.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    inputs = random_inputs(*ROWS)
    assert torch.equal(real_logits(load(tmp_path), inputs), real_logits(reference, inputs))


# ------------------------------------------------------------------------------------------ adapters and quantisation


@pytest.mark.parametrize(
    "target_modules, kwargs",
    [
        (["q_proj", "v_proj"], {}),
        (r".*language_model.*\.(q_proj|v_proj)", {}),
        (r".*language_model.*\.(q_proj|v_proj)", {"modules_to_save": ["resampler"]}),
        ("all-linear", {}),
    ],
    ids=["by name", "decoder", "decoder and whole resampler", "all-linear"],
)
def test_lora(folder, target_modules, kwargs, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=target_modules, task_type="CAUSAL_LM", **kwargs)
    model = peft.get_peft_model(load(folder), config)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert any("language_model" in name for name in adapted)
    assert not any("lm_head" in name for name in adapted)
    assert any("resampler" in name for name in adapted) == (
        not isinstance(target_modules, str) or "all" in target_modules
    )

    inputs = random_inputs(*ROWS)
    labels = text_labels(inputs)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(4):
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    trained = real_logits(model.eval(), inputs)
    generated = model.generate(**inputs, num_visual_tokens=2, **NEW)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 6
    model.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(real_logits(reloaded, inputs), trained)
    merged = model.merge_and_unload()
    assert type(merged) is MQTLlavaForConditionalGeneration
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(real_logits(load(tmp_path / "merged"), inputs), trained, rtol=1e-4, atol=1e-4)


def quantization_config(name: str):
    if name == "quanto":
        pytest.importorskip("optimum.quanto")
        return transformers.QuantoConfig(weights="int8")
    quantization = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())


@pytest.mark.parametrize("name", ["quanto", "torchao"])
def test_quantised_weights(folder, reference, name):
    model = load(folder, quantization_config=quantization_config(name), device_map="cpu")
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    assert type(weight) not in (torch.Tensor, torch.nn.Parameter)
    assert type(model.lm_head.weight) is torch.nn.Parameter
    inputs = random_inputs(*ROWS)
    actual, expected = (real_logits(m, inputs)[:, :IMAGE_TOKEN_ID] for m in (model, reference))
    assert (actual - expected).abs().max() < 0.2 * expected.abs().max()
    assert model.generate(**inputs, num_visual_tokens=2, **NEW).shape[1] == inputs["input_ids"].shape[1] + 6


# --------------------------------------------------------------------------------------------------- tensor parallel

TENSOR_PARALLEL = """
import os, sys
import torch
from mqt_llava import MQTLlavaForConditionalGeneration

folder, inputs, output = sys.argv[1:]
torch.set_num_threads(1)
inputs = torch.load(inputs)
model = MQTLlavaForConditionalGeneration.from_pretrained(folder, tp_plan="auto").eval()
weight = model.model.language_model.layers[0].mlp.up_proj.weight
weight = weight.to_local() if hasattr(weight, "to_local") else weight
with torch.no_grad():
    result = {
        "logits": model(**inputs).logits,
        "generated": model.generate(**inputs, num_visual_tokens=3, max_new_tokens=6),
        "rows": len(weight),
    }
if os.environ["RANK"] == "0":
    torch.save(result, output)
"""


def test_tensor_parallel_plan_covers_decoder_and_head(reference):
    layer = "model.language_model.layers.*"
    assert (
        reference.tp_plan.items()
        >= {
            "lm_head": "colwise_gather_output",
            f"{layer}.self_attn.q_proj": "colwise",
            f"{layer}.self_attn.o_proj": "rowwise",
            f"{layer}.mlp.up_proj": "colwise",
            f"{layer}.mlp.down_proj": "rowwise",
        }.items()
    )


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_tensor_parallel_on_two_processes_equals_one(tmp_path):
    config = tiny_config()
    config.text_config.intermediate_size = 40
    model = random_model(config)
    model.save_pretrained(tmp_path / "model")
    inputs = random_inputs(*ROWS)
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "run.py").write_text(TENSOR_PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = [tmp_path / name for name in ("run.py", "model", "inputs.pt", "outputs.pt")]
    run = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    outputs = torch.load(tmp_path / "outputs.pt")
    assert outputs["rows"] == 20
    is_real = inputs["attention_mask"] == 1
    torch.testing.assert_close(outputs["logits"][is_real], real_logits(model, inputs), rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs["generated"], model.generate(**inputs, num_visual_tokens=3, **NEW))
