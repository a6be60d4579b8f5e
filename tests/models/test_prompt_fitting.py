"""`generate` at another number of visual tokens: the prompt is re-sized, and comes back as the caller passed it."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.models.placeholders import resize_prompt, visual_tokens_per_image
from tests.builders.configs import decoder_config, tiny_config
from tests.builders.models import count_calls, random_model
from tests.builders.prompts import IMAGE_TOKEN_ID, one_prompt, prompt_rows, random_pixels


NEW = {"max_new_tokens": 5, "do_sample": False}


# Text alone, one image, two images with and without text between, in one batch. Token 0 is text too where it is not
# masked: real tokens are found by the mask.
ROWS = [
    [1, 5, 6, 7],
    [1, 11, "image", 12, 0, 13],
    [1, "image", 21, "image", 22],
    [1, 31, "image", "image", 32, 33, 34, 35],
]
NUM_IMAGES = 5


@pytest.fixture
def pixel_values():
    return random_pixels(NUM_IMAGES, seed=1)


def generate(model, inputs, **kwargs) -> torch.Tensor:
    """The new tokens."""
    output = model.generate(**inputs, **{**NEW, **kwargs})
    return output[:, inputs["input_ids"].shape[1] :]


def inputs_at(counts, pixel_values):
    return {**prompt_rows(ROWS, counts), "pixel_values": pixel_values, "visual_token_counts": torch.tensor(counts)}


@pytest.mark.parametrize("made_with", [[16] * 5, [1] * 5, [4, 16, 1, 9, 3]], ids=str)
@pytest.mark.parametrize("m", [1, 3, 16, [2, 7, 1, 16, 5]], ids=str)
def test_resizing_equals_the_processor_at_m(tiny_model, pixel_values, made_with, m):
    expected = generate(tiny_model, inputs_at(m if isinstance(m, list) else [m] * 5, pixel_values))
    assert torch.equal(generate(tiny_model, inputs_at(made_with, pixel_values), num_visual_tokens=m), expected)


def test_the_number_of_visual_tokens_changes_the_answer(tiny_model, pixel_values):
    inputs = inputs_at([16] * 5, pixel_values)
    one, sixteen = (generate(tiny_model, inputs, num_visual_tokens=m) for m in (1, 16))
    assert torch.equal(one[0], sixteen[0])  # a prompt without images
    assert not torch.equal(one[1:], sixteen[1:])


def test_batch_equals_one_by_one(tiny_model, pixel_values):
    batched = generate(tiny_model, inputs_at([16] * 5, pixel_values), num_visual_tokens=[2, 7, 1, 16, 5])
    at_these, counts = inputs_at([2, 7, 1, 16, 5], pixel_values), ([], [2], [7, 1], [16, 5])
    alone = [generate(tiny_model, one_prompt(at_these, counts, row)) for row in range(len(ROWS))]
    assert torch.equal(batched, torch.cat(alone))


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beams(tiny_model, pixel_values, kwargs):
    inputs = inputs_at([16] * 5, pixel_values)
    expected = generate(tiny_model, inputs_at([4] * 5, pixel_values), **kwargs)
    output = tiny_model.generate(**inputs, num_visual_tokens=4, **NEW, **kwargs)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, length:], expected)
    copies = kwargs.get("num_return_sequences", 1)
    assert torch.equal(output[:, :length], inputs["input_ids"].repeat_interleave(copies, 0))


def test_sampling_with_several_sequences(tiny_model, pixel_values):
    kwargs = {"do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    expected = generate(tiny_model, inputs_at([4] * 5, pixel_values), **kwargs)
    torch.manual_seed(0)
    actual = generate(tiny_model, inputs_at([9] * 5, pixel_values), num_visual_tokens=4, **kwargs)
    assert torch.equal(actual, expected) and len({tuple(answer) for answer in actual[3:6].tolist()}) > 1


@pytest.mark.parametrize("m", [None, 1, 4, 16])
def test_the_callers_prompt_comes_back(tiny_model, pixel_values, m):
    inputs = inputs_at([9] * 5, pixel_values)
    length = inputs["input_ids"].shape[1]
    output = tiny_model.generate(**inputs, num_visual_tokens=m, **NEW)
    assert torch.equal(output[:, :length], inputs["input_ids"])
    assert output.shape == (4, length + 5)
    outputs = tiny_model.generate(**inputs, num_visual_tokens=m, return_dict_in_generate=True, **NEW)
    assert torch.equal(outputs.sequences, output)


def test_what_else_is_returned_refers_to_the_resized_prompt(tiny_model, pixel_values):
    outputs = tiny_model.generate(
        **inputs_at([16] * 5, pixel_values),
        num_visual_tokens=2,
        return_dict_in_generate=True,
        output_hidden_states=True,
        **NEW,
    )
    length = inputs_at([2] * 5, pixel_values)["input_ids"].shape[1]
    assert outputs.hidden_states[0][0].shape[1] == length
    assert outputs.past_key_values.get_seq_length() == length + 5 - 1


def test_max_length_and_streamers_refer_to_the_resized_prompt(tiny_model, pixel_values):
    class Recorder(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.append(value.reshape(-1))

        def end(self):
            self.ended = True

    inputs = {**prompt_rows(ROWS[1:2], [16]), "pixel_values": pixel_values[:1]}
    streamer = Recorder()
    output = tiny_model.generate(**inputs, num_visual_tokens=2, max_length=10, do_sample=False, streamer=streamer)
    resized = prompt_rows(ROWS[1:2], [2])["input_ids"]
    assert torch.equal(streamer.tokens[0], resized[0]) and streamer.ended
    assert output.shape[1] == inputs["input_ids"].shape[1] + 10 - resized.shape[1]
    assert torch.equal(torch.cat(streamer.tokens[1:]), output[0, inputs["input_ids"].shape[1] :])


def test_precedence(tiny_model, pixel_values):
    """The argument, the configuration passed, the model's, the processor's counts."""
    inputs = inputs_at([16] * 5, pixel_values)
    expected = {m: generate(tiny_model, inputs_at([m] * 5, pixel_values)) for m in (1, 2, 3, 16)}
    passed = GenerationConfig(num_visual_tokens=2, **NEW)

    assert torch.equal(generate(tiny_model, inputs), expected[16])
    tiny_model.generation_config.num_visual_tokens = 3
    assert torch.equal(generate(tiny_model, inputs), expected[3])
    assert torch.equal(generate(tiny_model, inputs, generation_config=passed), expected[2])
    assert torch.equal(generate(tiny_model, inputs, generation_config=passed, num_visual_tokens=1), expected[1])


def test_generation_config_is_saved(tiny_model, tmp_path):
    tiny_model.generation_config.num_visual_tokens = 3
    tiny_model.save_pretrained(tmp_path)
    assert MQTLlavaForConditionalGeneration.from_pretrained(tmp_path).generation_config.num_visual_tokens == 3


def test_encode_once_and_use_at_any_m(tiny_model, pixel_values):
    encoded = tiny_model.get_image_features(pixel_values)
    before = [tokens.clone() for tokens in encoded.pooler_output]
    calls = count_calls(tiny_model.model.vision_tower)
    for m in (16, 1, 5, [2, 7, 1, 16, 5]):
        expected = generate(tiny_model, inputs_at(m if isinstance(m, list) else [m] * 5, pixel_values))
        calls.clear()
        inputs = {**prompt_rows(ROWS, [16] * 5), "mm_encoder_outputs": {"image": encoded}}
        generate(tiny_model, inputs, num_visual_tokens=m, num_beams=2)
        assert torch.equal(generate(tiny_model, inputs, num_visual_tokens=m), expected)
        assert not calls
    assert len(encoded.pooler_output) == NUM_IMAGES
    assert all(torch.equal(tokens, old) for tokens, old in zip(encoded.pooler_output, before))


def test_encoded_images_are_cut_to_the_prompt(tiny_model, pixel_values):
    """The processor's own number of tokens holds, although the images were encoded at M."""
    inputs = inputs_at([4, 16, 1, 9, 3], pixel_values)
    expected = generate(tiny_model, inputs)
    encoded = tiny_model.get_image_features(inputs.pop("pixel_values"))
    assert torch.equal(generate(tiny_model, {**inputs, "mm_encoder_outputs": {"image": encoded}}), expected)


@pytest.mark.parametrize("decoder", ["llama", "gpt2"])  # GPT-2's learned positions tell where all else is shifted
def test_positions_are_rebuilt(decoder, pixel_values):
    model = random_model(tiny_config(text_config=decoder_config(decoder)))
    inputs = inputs_at([16] * 5, pixel_values)
    expected = generate(model, inputs, num_visual_tokens=4)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert torch.equal(generate(model, inputs, num_visual_tokens=4), expected)
    inputs["mm_token_type_ids"] = None
    assert torch.equal(generate(model, inputs, num_visual_tokens=4), expected)


def test_token_types_are_rebuilt():
    inputs = prompt_rows(ROWS, [16] * 5)
    types = (inputs["input_ids"] == IMAGE_TOKEN_ID).long()
    resized, mask = resize_prompt(
        {"input_ids": inputs["input_ids"], "mm_token_type_ids": types},
        types.bool(),
        inputs["attention_mask"],
        [16] * 5,
        [2, 7, 1, 16, 5],
        {"input_ids": 0, "mm_token_type_ids": 0},
    )
    assert torch.equal(resized["mm_token_type_ids"], (resized["input_ids"] == IMAGE_TOKEN_ID).long())
    expected = prompt_rows(ROWS, [2, 7, 1, 16, 5])
    assert torch.equal(resized["input_ids"], expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])


def test_prompt_as_positional_argument_and_without_mask(tiny_model, pixel_values):
    ids = prompt_rows(ROWS[1:2], [16])["input_ids"]
    expected = generate(tiny_model, {**prompt_rows(ROWS[1:2], [4]), "pixel_values": pixel_values[:1]})
    output = tiny_model.generate(ids, pixel_values=pixel_values[:1], num_visual_tokens=4, **NEW)
    assert torch.equal(output[:, ids.shape[1] :], expected)


@pytest.mark.parametrize("assistant", ["itself", "smaller"])
def test_assisted_decoding(tiny_model, pixel_values, assistant):
    helper = tiny_model
    if assistant == "smaller":
        torch.manual_seed(3)
        helper = MQTLlavaForConditionalGeneration(tiny_config()).eval()
    inputs = {**prompt_rows(ROWS[1:2], [16]), "pixel_values": pixel_values[:1]}
    for kwargs in ({"max_new_tokens": 12}, {"max_new_tokens": 12, "num_visual_tokens": 4}):
        # The assistant must not re-size what it is given, whatever its own configuration says.
        for helper.generation_config.num_visual_tokens in (4, 7):
            expected = generate(tiny_model, inputs, **kwargs)
            assert torch.equal(generate(tiny_model, inputs, assistant_model=helper, **kwargs), expected)
            assert torch.equal(generate(tiny_model, inputs, prompt_lookup_num_tokens=2, **kwargs), expected)


def test_prompt_lookup_that_guesses_placeholders(tiny_model, pixel_values):
    """What followed the prompt's last token in the prompt is an image."""
    inputs = {**prompt_rows([[1, 11, "image", 12, 11]], [4]), "pixel_values": pixel_values[:1]}
    expected = generate(tiny_model, inputs, max_new_tokens=12)
    assert torch.equal(generate(tiny_model, inputs, prompt_lookup_num_tokens=3, max_new_tokens=12), expected)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="drops the images of a chunked prompt of any model"
)
@pytest.mark.parametrize("chunk", [4, 24])
def test_chunked_prefill(tiny_model, pixel_values, chunk):
    inputs = inputs_at([16] * 5, pixel_values)
    for m in (None, 4):
        expected = generate(tiny_model, inputs, num_visual_tokens=m)
        assert torch.equal(generate(tiny_model, inputs, num_visual_tokens=m, prefill_chunk_size=chunk), expected)


def test_caches(tiny_model, pixel_values):
    inputs = inputs_at([16] * 5, pixel_values)
    static = {"cache_implementation": "static", "disable_compile": True}
    for m in (None, 4):
        expected = generate(tiny_model, inputs, num_visual_tokens=m)
        for kwargs in (static, {"cache_implementation": "dynamic"}, {"use_cache": False}, {"logits_to_keep": 1}):
            assert torch.equal(generate(tiny_model, inputs, num_visual_tokens=m, **kwargs), expected)
    cache = StaticCache(config=tiny_model.config, max_cache_len=64)
    assert torch.equal(generate(tiny_model, inputs, num_visual_tokens=4, past_key_values=cache), expected)


def test_repetition_penalty_and_never_an_image(tiny_model, pixel_values):
    """The placeholder stands in every prompt and is in no answer."""
    inputs = inputs_at([16] * 5, pixel_values)
    sampled = generate(
        tiny_model, inputs, do_sample=True, temperature=50.0, top_k=0, max_new_tokens=100, repetition_penalty=1.3
    )
    assert sampled.unique().numel() > 50
    assert not (sampled == IMAGE_TOKEN_ID).any()


def test_inputs_embeds(tiny_model, pixel_values):
    inputs = {**prompt_rows(ROWS[1:2], [4]), "pixel_values": pixel_values[:1]}
    expected = generate(tiny_model, inputs)
    embeds = tiny_model.get_input_embeddings()(inputs.pop("input_ids"))
    kwargs = {**inputs, "inputs_embeds": embeds, **NEW}
    assert torch.equal(tiny_model.generate(**kwargs), expected)
    assert torch.equal(tiny_model.generate(**kwargs, num_visual_tokens=4), expected)
    with pytest.raises(ValueError, match="`num_visual_tokens` is 2.*`inputs_embeds` holds \\[4\\].*Pass `input_ids`"):
        tiny_model.generate(**kwargs, num_visual_tokens=2)


def test_sharing_placeholders():
    mask = torch.tensor([[True] * 6 + [False] * 2, [True] * 3 + [False] * 5])
    assert visual_tokens_per_image(mask, 3, 16) == [3, 3, 3]
    assert visual_tokens_per_image(mask, 3, 16, torch.tensor([2, 4, 3])) == [2, 4, 3]
    with pytest.raises(ValueError, match="9 image tokens.*2 images cannot share equally.*visual_token_counts"):
        visual_tokens_per_image(mask, 2, 16)
    with pytest.raises(ValueError, match="9 image tokens in the prompts, 8 visual tokens"):
        visual_tokens_per_image(mask, 3, 16, [2, 3, 3])
    with pytest.raises(ValueError, match="image tokens per prompt: \\[6, 3\\]"):  # an image across two prompts
        visual_tokens_per_image(mask, 3, 16, [3, 4, 2])
    two_runs = torch.tensor([[True] * 3 + [False] + [True] * 5])
    assert visual_tokens_per_image(two_runs, 2, 16, [3, 5]) == [3, 5]
    for counts in ([5, 3], None):  # an image across the text between two runs
        with pytest.raises(ValueError, match="image tokens per prompt: \\[8\\]"):
            visual_tokens_per_image(two_runs, 2, 16, counts)
    with pytest.raises(ValueError, match="1..4 for an image"):
        visual_tokens_per_image(mask, 1, 4)
