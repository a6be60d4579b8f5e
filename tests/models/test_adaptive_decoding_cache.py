"""Adaptive generation is exact: its tokens are plain generate's at the level it reports, and nothing is done twice."""

import random

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, DynamicCache, StaticCache

from mqt_llava import AdaptiveBudget
from tests.builders.configs import DECODERS, TEXT_CONFIG, VISION_CONFIG, decoder_config, tiny_config
from tests.builders.models import random_model
from tests.builders.prompts import prompt_rows, random_pixels
from tests.builders.turns import text_of


NEW, MARGIN = 6, 1e-4
ALWAYS_CLIMB = {"confidence": 1.0, "margin": 1.0}
SAMPLE = {"do_sample": True, "temperature": 1.5}
PROCESSORS = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "eos_token_id": [5, 50]}
MODES = [
    {}, SAMPLE, {**SAMPLE, "num_return_sequences": 3}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2},
    PROCESSORS, {**PROCESSORS, "num_beams": 2}, {"use_cache": False}, {"cache_implementation": "dynamic"},
]  # fmt: skip
if Version(transformers.__version__) >= Version("5.20"):  # before, images of a chunked prompt are dropped
    MODES.append({"prefill_chunk_size": 4})


def random_rows(rng: random.Random, max_images: int = 3) -> list[list]:
    """One to five prompts of text and images. Token 0 is text too, and some prompts begin or end with an image."""

    def text(*lengths):
        return [rng.randint(0, 90) for _ in range(rng.choice(lengths))]

    rows = []
    for _ in range(rng.randint(1, 5)):
        images = [piece for _ in range(rng.randint(0, max_images)) for piece in ("image", *text(0, 1, 3))]
        ends_with_image = images and rng.random() < 0.1
        rows.append([*text(0, 1, 2, 5), *images, *([] if ends_with_image else text(1, 2, 4, 7))])
    return rows


def random_prompts(model, rng: random.Random) -> tuple[list[list], torch.Tensor, dict]:
    """Prompts made at any m, padded on any side, with pixels or encoded images, with or without counts."""
    rows = random_rows(rng)
    number = sum(row.count("image") for row in rows)
    made_with = [rng.choice([1, 4, 16])] * number if rng.random() < 0.5 else rng.choices(range(1, 17), k=number)
    images = random_pixels(number, seed=rng.randint(0, 999))
    inputs = prompt_rows(rows, made_with, "left" if rng.random() < 0.5 or not number else "right")
    if number and (len(set(made_with)) > 1 or rng.random() < 0.5):
        inputs["visual_token_counts"] = torch.tensor(made_with)
    if number and rng.random() < 0.5:
        inputs["mm_encoder_outputs"] = {"image": model.get_image_features(images)}
    elif number:
        inputs["pixel_values"] = images
    return rows, images, inputs


def dividing_budget(model, inputs: dict, levels: list[int], num_probed: int = 1, margin: float = 0.0):
    """A budget at which some prompts stop and others go on: its threshold is in the middle of what was probed."""
    common = {"num_probed_tokens": num_probed, "unended_power": 1}
    values = generate(model, inputs, AdaptiveBudget(levels, **common, **ALWAYS_CLIMB)).visual_token_confidence
    values = values[~values.isnan()]
    confidence = float(values.quantile(0.6)) - 1e-4 if len(values) else 0.5
    return AdaptiveBudget(levels, confidence=max(0.0, confidence), margin=margin, **common)


def generate(model, inputs: dict, budget=None, **kwargs):
    torch.manual_seed(5)
    kwargs = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, **kwargs}
    return model.generate(**inputs, num_visual_tokens=budget, return_dict_in_generate=True, **kwargs)


def compare(model, rows: list[list], images: torch.Tensor, inputs: dict, budget: AdaptiveBudget, **kwargs):
    """
    Runs adaptively, and plainly at the levels that were reported, and asserts that the tokens are the same.

    Returns:
        Both outputs, and how many sequences were compared.
    """
    output = generate(model, inputs, budget, **kwargs)
    levels = output.visual_token_level.tolist()
    counts = [level for level, row in zip(levels, rows) for piece in row if piece == "image"]
    plain_inputs = prompt_rows(rows, counts)
    if counts:
        plain_inputs |= {"pixel_values": images, "visual_token_counts": torch.tensor(counts)}
    plain = generate(model, plain_inputs, **kwargs)

    length, copies = inputs["input_ids"].shape[1], len(output.sequences) // len(rows)
    assert torch.equal(output.sequences[:, :length], inputs["input_ids"].repeat_interleave(copies, 0))
    tokens, expected = output.sequences[:, length:], plain.sequences[:, plain_inputs["input_ids"].shape[1] :]
    for row in range(len(tokens)):
        is_same = tokens.shape == expected.shape and torch.equal(tokens[row], expected[row])
        if not is_same and "num_beams" not in kwargs:
            width = min(tokens.shape[1], expected.shape[1])
            step = int((tokens[row, :width] != expected[row, :width]).int().argmax())
            best, second = plain.logits[step][row].topk(2).values
            is_same = best - second < MARGIN
        assert is_same, (rows, levels, budget)
    return output, plain, len(tokens)


@pytest.mark.parametrize("decoder", DECODERS)
def test_tokens_are_plain_generates_at_the_level_reported(decoder):
    model, rng = random_model(tiny_config(text_config=decoder_config(decoder))), random.Random(decoder)
    num_compared, stops = 0, set()
    for number in range(40):
        rows, images, inputs = random_prompts(model, rng)
        levels, num_probed = sorted(rng.sample(range(1, 17), rng.randint(1, 4))), rng.randint(1, 3)
        budget = dividing_budget(model, inputs, levels, num_probed, margin=rng.choice([0.0, 0.0, 0.1]))
        output, plain, added = compare(model, rows, images, inputs, budget, **MODES[number % len(MODES)])
        num_compared += added
        stops |= {levels.index(level) for level in output.visual_token_level.tolist() if level}
        for row, level in zip(rows, output.visual_token_level.tolist()):
            assert level in levels if "image" in row else level == 0
    assert num_compared > 100 and {0, 1, 2} <= stops


def recurrent(name: str, **kwargs) -> dict:
    sizes = {"mamba_n_heads": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
    return {"model_type": name, **TEXT_CONFIG, **sizes, **kwargs}


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 24,
}  # fmt: skip
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
RECOMPUTED = {
    "sliding window": {"model_type": "mistral", **TEXT_CONFIG, "sliding_window": 6},
    "some sliding windows": {"model_type": "gemma2", **TEXT_CONFIG, "head_dim": 8, "sliding_window": 6},
    "bamba": recurrent("bamba", attn_layer_indices=[1], mamba_d_head=8),
    "falcon_h1": recurrent("falcon_h1", mamba_d_ssm=32, mamba_d_head=4),
    "qwen3_next": {
        "model_type": "qwen3_next", **TEXT_CONFIG, **LINEAR, **EXPERTS, "head_dim": 8,
        "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"],
    },
    "lfm2": {"model_type": "lfm2", **TEXT_CONFIG, "layer_types": ["conv", "full_attention"]},
    "longrope": {
        "model_type": "phi3", **TEXT_CONFIG, "max_position_embeddings": 96, "original_max_position_embeddings": 24,
        "rope_parameters": LONGROPE,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECOMPUTED)
def test_decoders_whose_cache_cannot_be_continued_recompute(name):
    config = AutoConfig.for_model(**RECOMPUTED[name])
    model, rng = random_model(tiny_config(text_config=config)), random.Random(name)
    stops = set()
    for _ in range(8):
        rows, images, inputs = random_prompts(model, rng)
        num_probed = rng.randint(1, 3)
        budget = dividing_budget(model, inputs, [2, 5, 16], num_probed)
        output, plain, _ = compare(model, rows, images, inputs, budget)
        if name != "longrope":  # whose frequencies follow the longest prompt of a batch
            assert_confidence_is_that_of_plain(output, plain, budget)
        stops |= set(output.visual_token_level.tolist())
    assert len(stops - {0}) > 1


def assert_confidence_is_that_of_plain(output, plain, budget: AdaptiveBudget) -> None:
    """The least probability of the first tokens of plain generate's answer at the level where it stopped."""
    probed = torch.stack([logits.softmax(-1).amax(-1) for logits in plain.logits[: budget.num_probed_tokens]]).amin(0)
    for row, level in enumerate(output.visual_token_level.tolist()):
        if level and level != budget.levels[-1]:
            value = output.visual_token_confidence[row, budget.levels.index(level)]
            torch.testing.assert_close(value, probed[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("levels", [[4], [2, 4, 16]], ids=str)
def test_the_last_of_several_images_ends_its_prompt(tiny_model, levels):
    """Each of them has to be a visual token, and the cache that is returned that of the whole prompt."""
    rows = [[1, 11, "image", 12, 13, "image"], [1, 14, "image", 15], [1, "image", "image"]]
    inputs = {**prompt_rows(rows, [16] * 5), "pixel_values": random_pixels(5)}
    budget = (
        AdaptiveBudget(levels, **ALWAYS_CLIMB) if len(levels) == 1 else dividing_budget(tiny_model, inputs, levels)
    )
    output, plain, _ = compare(tiny_model, rows, inputs["pixel_values"], inputs, budget)
    assert output.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    for layer, expected in zip(output.past_key_values.layers, plain.past_key_values.layers):
        torch.testing.assert_close(layer.keys, expected.keys)


@pytest.mark.parametrize("num_probed", [1, 3])
def test_confidence_is_that_of_the_answer(tiny_model, num_probed):
    rng = random.Random(1)
    for _ in range(10):
        rows, images, inputs = random_prompts(tiny_model, rng)
        budget = dividing_budget(tiny_model, inputs, [1, 3, 16], num_probed)
        output, plain, _ = compare(tiny_model, rows, images, inputs, budget)
        assert_confidence_is_that_of_plain(output, plain, budget)


ROWS = [
    [1, 11, "image", 12, 13], [1, "image", 21, 22, 23, 24, 25], [1, 5, 6, 7], [1, 31, 32, 33, "image", 34],
    [41, "image", 42, 43, "image", 44, 45],
]  # fmt: skip


@pytest.fixture
def inputs():
    return {**prompt_rows(ROWS, [16] * 5), "pixel_values": random_pixels(5)}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"past_key_values": DynamicCache},
        {"past_key_values": StaticCache},
        {"prompt_lookup_num_tokens": 2},
        {"assistant_model": "itself"},
    ],
    ids=str,
)
def test_other_caches_and_assistants(tiny_model, inputs, kwargs):
    is_batch = not {"assistant_model", "prompt_lookup_num_tokens"} & set(kwargs)
    if not is_batch:  # transformers assists one prompt at a time
        inputs = {**prompt_rows(ROWS[:1], [16]), "pixel_values": inputs["pixel_values"][:1]}
    budget = dividing_budget(tiny_model, inputs, [1, 4, 16])
    expected = generate(tiny_model, inputs, budget)
    if "assistant_model" in kwargs:
        tiny_model.generation_config.num_visual_tokens = 4  # the assistant's
        kwargs = {"assistant_model": tiny_model}
    if cache_class := kwargs.get("past_key_values"):
        sizes = {"max_cache_len": 64} if cache_class is StaticCache else {}
        kwargs = {"past_key_values": cache_class(config=tiny_model.config, **sizes)}
    output = generate(tiny_model, inputs, budget, **kwargs)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.visual_token_level, expected.visual_token_level)
    assert not is_batch or len(output.visual_token_level.unique()) > 2  # 0, without an image, and several levels


def test_quantized_cache(tiny_model, inputs):
    pytest.importorskip("optimum.quanto")
    budget = dividing_budget(tiny_model, inputs, [1, 4, 16])
    compare(tiny_model, ROWS, inputs["pixel_values"], inputs, budget, cache_implementation="quantized")


def test_prompts_that_end_with_the_image(tiny_model):
    rows = [[1, 11, "image"], [1, "image", 21]]
    images = random_pixels(2)
    inputs = {**prompt_rows(rows, [16] * 2), "pixel_values": images}
    for confidence in (0.0, 1.0):
        budget = AdaptiveBudget([2, 16], confidence, margin=confidence)
        output, _, _ = compare(tiny_model, rows, images, inputs, budget)
        assert output.visual_token_level.tolist() == [16 if confidence else 2] * 2


class Counter:
    """What the decoder and the vision tower are given."""

    def __init__(self, model):
        self.model, self.tokens, self.num_encoded, self.visual_tokens = model, [], 0, []
        self.hooks = [
            model.model.vision_tower.register_forward_hook(self.count_images),
            model.model.register_forward_hook(self.count_tokens, with_kwargs=True),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def count_images(self, module, arguments, output):
        self.num_encoded += 1

    def count_tokens(self, module, arguments, kwargs, output):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        self.tokens.append(ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum()))
        if output.image_hidden_states is not None:
            self.visual_tokens.append(output.image_hidden_states)


@pytest.mark.parametrize("num_probed", [1, 3])
@pytest.mark.parametrize("levels", [[16], [4, 16], [1, 4, 9, 16]], ids=str)
def test_worst_case_is_one_pass_and_the_text_behind_the_image(tiny_model, levels, num_probed):
    for row in (ROWS[0], ROWS[1], ROWS[3]):
        before, after = row.index("image"), len(row) - row.index("image") - 1
        inputs = {**prompt_rows([row], [16]), "pixel_values": random_pixels(1)}
        with Counter(tiny_model) as counter:
            budget = AdaptiveBudget(levels, num_probed_tokens=num_probed, **ALWAYS_CLIMB)
            output = generate(tiny_model, inputs, budget, max_new_tokens=1)
        one_pass = before + 16 + after
        # The last probed token is looked at, but not processed.
        assert sum(counter.tokens) == one_pass + (len(levels) - 1) * (after + num_probed - 1)
        assert counter.num_encoded == 1
        visual_tokens = tiny_model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        assert torch.equal(torch.cat(counter.visual_tokens), visual_tokens)  # each one once
        assert output.visual_tokens_processed.tolist() == [16]
        assert output.visual_token_level.tolist() == [16]


def test_worst_case_at_7b_proportions_costs_less_than_a_tenth_more():
    """256 visual tokens of 576 patches; Vicuna's system prompt is 35 tokens long, a short question 12."""
    vision = {**VISION_CONFIG, "image_size": 336, "patch_size": 14}
    model = random_model(tiny_config(vision_config=vision, max_visual_tokens=256))
    assert model.model.vision_tower.config.image_size // 14 == 24 and AdaptiveBudget().levels_for(256) == [16, 64, 256]
    row = [*range(1, 36), "image", *range(40, 52)]
    images = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    with Counter(model) as counter:
        inputs = {**prompt_rows([row], [256]), "pixel_values": images}
        output = generate(model, inputs, AdaptiveBudget(**ALWAYS_CLIMB), max_new_tokens=1)
    assert output.visual_token_level.tolist() == output.visual_tokens_processed.tolist() == [256]
    assert sum(counter.tokens) == 35 + 256 + 12 + 2 * 12 < 1.1 * (35 + 256 + 12)


@pytest.mark.parametrize("num_probed", [1, 2])
def test_prompts_that_stopped_cost_nothing_further(tiny_model, num_probed):
    rng, levels, all_levels = random.Random(3), [1, 4, 9, 16], set()
    for _ in range(15):
        rows = random_rows(rng, max_images=1)
        number = sum(row.count("image") for row in rows)
        if not number:
            continue
        inputs = {**prompt_rows(rows, [16] * number), "pixel_values": random_pixels(number, seed=rng.randint(0, 99))}
        budget = dividing_budget(tiny_model, inputs, levels, num_probed)
        with Counter(tiny_model) as counter:
            output = generate(tiny_model, inputs, budget, max_new_tokens=1)
        expected = 0
        for row, level in zip(rows, output.visual_token_level.tolist()):
            before = row.index("image") if "image" in row else len(row) - 1
            after = len(row) - row.index("image") - 1 if "image" in row else 1
            num_levels = levels.index(level) + 1 if level else 1
            num_probes = min(num_levels, len(levels) - 1)
            # Where the highest level was not reached, `generate` begins by processing the last token again.
            expected += before + level + num_levels * after + num_probes * (num_probed - 1) + (level != levels[-1])
        assert sum(counter.tokens) == expected
        assert output.visual_tokens_processed.tolist() == output.visual_token_level.tolist()
        assert sum(map(len, counter.visual_tokens)) == int(output.visual_token_level.sum())
        assert counter.num_encoded == 1
        all_levels |= set(output.visual_token_level.tolist())
    assert {1, 4, 16} <= all_levels


def test_of_several_images_the_first_is_continued(tiny_model):
    row, images = [1, 11, "image", 12, "image", "image", 13], random_pixels(3)
    inputs = {**prompt_rows([row], [16] * 3), "pixel_values": images}
    with Counter(tiny_model) as counter:
        output, _, _ = compare(tiny_model, [row], images, inputs, AdaptiveBudget([2, 4, 16], **ALWAYS_CLIMB))
    assert output.visual_tokens_processed.tolist() == [16 + 2 * (2 + 4 + 16)]
    first, second, third = tiny_model.get_image_features(images).pooler_output
    expected = [first[:2], second[:2], third[:2], first[2:4], second[:4], third[:4], first[4:], second, third]
    assert torch.equal(torch.cat(counter.visual_tokens)[: 16 + 44], torch.cat(expected))


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
def test_the_visual_tokens_processed_are_counted(tiny_model, inputs, kwargs):
    budget = dividing_budget(tiny_model, inputs, [1, 4, 16], num_probed=2)
    with Counter(tiny_model) as counter:
        output = generate(tiny_model, inputs, budget, max_new_tokens=1, **kwargs)
    assert sum(map(len, counter.visual_tokens)) == int(output.visual_tokens_processed.sum())
    assert counter.num_encoded == 1


def test_text_alone_and_encoded_images_run_no_vision_tower(tiny_model, inputs):
    encoded = tiny_model.get_image_features(inputs["pixel_values"])
    before = [tokens.clone() for tokens in encoded.pooler_output]
    budget = dividing_budget(tiny_model, inputs, [1, 4, 16])
    expected = generate(tiny_model, inputs, budget)
    with Counter(tiny_model) as counter:
        output = generate(tiny_model, {**text_of(inputs), "mm_encoder_outputs": {"image": encoded}}, budget)
        text = prompt_rows(ROWS[2:3] * 2, [])
        answer = generate(tiny_model, text, budget)
    assert counter.num_encoded == 0
    assert torch.equal(output.sequences, expected.sequences)
    assert all(torch.equal(tokens, old) for tokens, old in zip(encoded.pooler_output, before))
    assert torch.equal(answer.sequences, generate(tiny_model, text).sequences)
    assert answer.visual_token_level.tolist() == answer.visual_tokens_processed.tolist() == [0, 0]
    assert answer.visual_token_confidence.isnan().all()
