"""What a request costs, against what models really compute, cache and hold."""

import random
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.planning import request_cost
from tests.builders.configs import VISION_CONFIG, tiny_config
from tests.builders.models import random_model
from tests.builders.random_configs import IMAGE_TOKEN_ID, random_llava_config, random_mqt_config, random_quecc_config


TINY, QUECC = tiny_config(), QueCCLlavaConfig()
ASKED = {"query_tokens": 5}  # of the only kind that reads a question with its images
FIXED = "follows from its configuration: leave it out"
COMPRESSORS = {"mqt_llava": "resampler", "quecc_llava": "resampler", "llava": "multi_modal_projector"}


def build(config, dtype=torch.float32):
    """A random model in whose attention every product is a matrix product, which FlopCounterMode counts."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    return model


def make_inputs(
    config, rows: int, counts: list[int], text_tokens: int, query_tokens: int | None = None
) -> dict[str, torch.Tensor]:
    """
    Prompts of equal length that begin with their images, for each as many placeholders as `counts` says. The last
    question is the longest.
    """
    size, channels = config.vision_config.image_size, config.vision_config.num_channels
    prompt = [IMAGE_TOKEN_ID] * sum(counts) + [3 + i for i in range(text_tokens)]
    input_ids = torch.tensor([prompt] * rows)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs["pixel_values"] = torch.randn(rows * len(counts), channels, size, size)
    if config.model_type == "mqt_llava":
        inputs["visual_token_counts"] = torch.tensor(counts * rows)
    if query_tokens is not None:
        inputs["query_input_ids"] = torch.randint(3, IMAGE_TOKEN_ID, (rows * len(counts), query_tokens))
        inputs["query_attention_mask"] = torch.ones_like(inputs["query_input_ids"])
        inputs["query_attention_mask"][:-1, : query_tokens // 2] = 0
    return inputs


def run_and_count(model, inputs, new_tokens):
    """
    FLOPs of a `generate` that is really run, in total and of the image's parts, and the cache it leaves. The decoder
    reads prompts as embeddings, only a question alone as ids.
    """
    parts, hooks = {"question": 0}, []
    with FlopCounterMode(display=False) as counter:
        for name, module in model.model.named_children():

            def start(module, args, kwargs, name=name):
                name = "question" if "input_ids" in kwargs else name
                parts[name] = parts.get(name, 0) - counter.get_total_flops()

            def end(module, args, kwargs, outputs, name=name):
                parts["question" if "input_ids" in kwargs else name] += counter.get_total_flops()

            hooks.append(module.register_forward_pre_hook(start, with_kwargs=True))
            hooks.append(module.register_forward_hook(end, with_kwargs=True))
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True)
    for hook in hooks:
        hook.remove()
    assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + new_tokens
    return counter.get_total_flops(), parts, output.past_key_values


def check_cost(config, seed, counts_of):
    rng = random.Random(seed)
    batch_size, num_images, new_tokens = rng.randint(1, 3), rng.randint(1, 3), rng.randint(2, 6)
    text_tokens = rng.randint(1, 20)
    query_tokens = rng.randint(1, 20) if config.model_type == "quecc_llava" else None
    counts, num_visual_tokens = counts_of(rng, num_images)
    request = {"batch_size": batch_size, "num_images": num_images, "text_tokens": text_tokens}
    request |= {"num_visual_tokens": num_visual_tokens, "query_tokens": query_tokens}
    cost = request_cost(config, new_tokens=new_tokens, **request)
    model = build(config)
    inputs = make_inputs(config, batch_size, counts, text_tokens, query_tokens)
    assert cost.prompt_tokens == inputs["input_ids"].shape[1]

    total, parts, cache = run_and_count(model, inputs, new_tokens)
    assert cost.flops.total == total
    assert cost.flops.vision_tower == parts["vision_tower"]
    assert cost.flops.compressor == parts[COMPRESSORS[config.model_type]]
    assert cost.flops.question == parts["question"] and (query_tokens is None or cost.flops.question > 0)
    images = cost.flops.vision_tower + cost.flops.compressor + cost.flops.question
    assert cost.flops.prefill + cost.flops.decode == total - images
    prefill_only, _, _ = run_and_count(model, inputs, 1)
    assert cost.flops.prefill == prefill_only - images
    assert request_cost(config, new_tokens=1, **request).flops.decode == 0

    assert cost.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    check_weights(model, cost)


def check_weights(model, cost):
    """Parameters once each, and the buffers that are saved with them."""

    def stored_bytes(module):
        saved = module.state_dict()
        tensors = [*module.parameters(), *(buffer for name, buffer in module.named_buffers() if name in saved)]
        return sum(tensor.nbytes for tensor in tensors)

    assert cost.weight_bytes.vision_tower == stored_bytes(model.model.vision_tower)
    assert cost.weight_bytes.compressor == stored_bytes(
        model.model.get_submodule(COMPRESSORS[model.config.model_type])
    )
    assert cost.weight_bytes.total == stored_bytes(model)


@pytest.mark.parametrize("seed", range(28))
def test_mqt_llava_costs_what_is_counted(seed):
    config = random_mqt_config(seed)

    def counts_of(rng, num_images):
        if rng.random() < 0.3:
            m = rng.randint(1, config.max_visual_tokens)
            return [m] * num_images, m
        counts = [rng.randint(1, config.max_visual_tokens) for _ in range(num_images)]
        return counts, counts

    check_cost(config, seed, counts_of)


@pytest.mark.parametrize("seed", range(28))
def test_llava_costs_what_is_counted(seed):
    config = random_llava_config(seed)
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    tokens += {"siglip_vision_model": 0, "dinov2_with_registers": 1}.get(vision.model_type, 1)
    tokens += getattr(vision, "num_register_tokens", 0)
    tokens -= config.vision_feature_select_strategy == "default"
    check_cost(config, seed, lambda rng, num_images: ([tokens] * num_images, None))


@pytest.mark.parametrize("seed", range(28))
def test_quecc_llava_costs_what_is_counted(seed):
    config = random_quecc_config(seed)
    check_cost(config, seed, lambda rng, num_images: ([config.num_visual_tokens] * num_images, None))


def test_by_default_an_image_has_all_visual_tokens():
    config = tiny_config()
    cost = request_cost(config, text_tokens=5)
    assert cost == request_cost(config, text_tokens=5, num_visual_tokens=16, num_images=1, new_tokens=1, batch_size=1)
    assert cost.prompt_tokens == 21
    listed = request_cost(config, text_tokens=5, num_visual_tokens=[3, 16])
    assert listed == request_cost(config, text_tokens=5, num_visual_tokens=torch.tensor([3, 16]), num_images=2)
    assert listed.prompt_tokens == 24


def test_bytes_follow_the_dtype():
    config = tiny_config()
    single, half = (request_cost(config, text_tokens=5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert single.flops == half.flops
    assert single.kv_bytes == 2 * half.kv_bytes and single.weight_bytes.total == 2 * half.weight_bytes.total
    check_weights(random_model(config).to(torch.bfloat16), half)
    assert request_cost(config, text_tokens=5) == single
    config.dtype = torch.bfloat16
    assert request_cost(config, text_tokens=5) == half


@pytest.mark.parametrize(
    "config, query_tokens",
    [(MQTLlavaConfig(), None), (QueCCLlavaConfig(), 1), (LlavaConfig(), None)],
    ids=["mqt_llava", "quecc_llava", "llava"],
)
def test_models_of_7b_weigh_what_they_hold(config, query_tokens):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).bfloat16()
    check_weights(model, request_cost(config, text_tokens=1, query_tokens=query_tokens, dtype=torch.bfloat16))


def test_flops_of_7b_from_first_principles():
    """CLIP ViT-L/14-336 is known for 0.38 TFLOPs and Llama-2-7B for 2 x 6.6 billion per token."""
    cost = request_cost(LlavaConfig(), text_tokens=64)
    assert cost.prompt_tokens == 640
    assert cost.flops.vision_tower / 1e12 == pytest.approx(0.38, abs=0.01)
    assert cost.flops.prefill / 640 == pytest.approx(2 * 6.6e9, rel=0.03)


def test_a_longer_question_costs_a_pass_and_nothing_else():
    short, long = (
        request_cost(QueCCLlavaConfig(), text_tokens=60, num_images=2, query_tokens=length) for length in (1, 24)
    )
    assert replace(long.flops, question=short.flops.question) == short.flops
    assert replace(long, flops=short.flops) == short
    assert long.flops.question / (2 * 24) == pytest.approx(2 * 6.5e9, rel=0.01)


@pytest.mark.parametrize(
    "config, kwargs, error, message",
    [
        (TINY, {"text_tokens": 0}, ValueError, "`text_tokens` is 0, but must be at least 1"),
        (TINY, {"text_tokens": 1.5}, TypeError, "`text_tokens` is 1.5, but must be an integer"),
        (TINY, {"new_tokens": 0}, ValueError, "`new_tokens` is 0"),
        (TINY, {"batch_size": True}, TypeError, "`batch_size` is True"),
        (TINY, {"num_images": 0}, ValueError, "`num_images` is 0"),
        (TINY, {"num_visual_tokens": 17}, ValueError, "`num_visual_tokens` is 17, but must be an integer in 1..16"),
        (TINY, {"num_visual_tokens": [4, 4], "num_images": 3}, ValueError, "2 entries for 3 images"),
        (TINY, {"num_visual_tokens": "4"}, TypeError, "`num_visual_tokens` is '4'"),
        (LlavaConfig(), {"num_visual_tokens": 64}, ValueError, f"LLaVA's {FIXED}"),
        (QUECC, {**ASKED, "num_visual_tokens": 16}, ValueError, f"QueCC-LLaVA's {FIXED}"),
        (QUECC, {}, ValueError, "`query_tokens` is missing: QueCC-LLaVA"),
        (QUECC, {"query_tokens": 0}, ValueError, "`query_tokens` is 0, but must be at least 1"),
        (QUECC, {"query_tokens": 2.0}, TypeError, "`query_tokens` is 2.0, but must be an integer"),
        (MQTLlavaConfig(), ASKED, ValueError, "`query_tokens` is 5, .* 'mqt_llava' encodes images without a question"),
        (LlavaConfig(), ASKED, ValueError, "`query_tokens` is 5, but a 'llava' encodes images without a question"),
    ],
)
def test_impossible_requests(config, kwargs, error, message):
    with pytest.raises(error, match=message):
        request_cost(config, **{"text_tokens": 5, **kwargs})


@pytest.mark.parametrize(
    "config, message",
    [
        (tiny_config(text_config={"model_type": "mamba", "vocab_size": 100}), "'mamba'.*llama, mistral.*gpt_neox"),
        (tiny_config(vision_config={**VISION_CONFIG, "model_type": "vit"}), "'vit'.*clip_vision_model, siglip"),
        (AutoConfig.for_model("llama"), "'llama'.*mqt_llava, quecc_llava, llava"),
        (tiny_config(vision_feature_layer=4), "`vision_feature_layer` is 4.*3 layers"),
        (tiny_config(vision_feature_select_strategy="full"), "17 tokens per image.*no square"),
        (QueCCLlavaConfig(vision_context_layers=[12, 25]), "`vision_context_layers` has 25.*24 layers"),
        (QueCCLlavaConfig(vision_feature_layer=0), "`vision_feature_layer` is 0.*24 layers"),
        (QueCCLlavaConfig(vision_feature_select_strategy="full"), "577 tokens per image.*no square"),
    ],
)
def test_models_whose_costs_are_not_known(config, message):
    asked = ASKED if config.model_type == "quecc_llava" else {}
    with pytest.raises(ValueError, match=message):
        request_cost(config, text_tokens=5, **asked)
