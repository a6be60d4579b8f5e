"""QueCC-LLaVA's `generate`: batches, beams, caches, conversations, and numbers of visual tokens."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, GenerationConfig

from mqt_llava import QueCCLlavaForConditionalGeneration
from tests.builders.both import image_inputs
from tests.builders.models import count_calls, random_quecc_model
from tests.builders.prompts import IMAGE_TOKEN_ID, one_prompt, pad, random_pixels, random_quecc_inputs
from tests.builders.quecc import HOW, NEW, ROWS, WHAT, WHERE, answers
from tests.builders.turns import text_of
from tests.builders.versions import needs_tracing


@pytest.fixture
def model() -> QueCCLlavaForConditionalGeneration:
    return random_quecc_model()


def test_text_alone(model):
    inputs = random_quecc_inputs([], [])
    expected = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, query_input_ids=None, query_attention_mask=None).logits, expected)
    assert answers(model, inputs).shape == (2, 6)


def test_images_encoded_once(model):
    inputs = random_quecc_inputs(*ROWS)
    expected, logits = answers(model, inputs), model(**inputs).logits
    encoded = model.get_image_features(**image_inputs(inputs))
    before = [tokens.clone() for tokens in encoded.pooler_output]
    calls = count_calls(model.model.vision_tower)
    text = text_of(inputs)
    # With what else the processor returns, or without it.
    for kwargs in (text, {key: value for key, value in inputs.items() if key != "pixel_values"}):
        kwargs = {**kwargs, "mm_encoder_outputs": {"image": encoded}}
        torch.testing.assert_close(model(**kwargs).logits, logits)
        assert torch.equal(answers(model, kwargs), expected)
        assert answers(model, kwargs, num_beams=2).shape == (4, 6)
    assert not calls
    assert all(torch.equal(tokens, old) for tokens, old in zip(encoded.pooler_output, before))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="cannot specify both pixel_values and mm_encoder_outputs"):
            call(**inputs, mm_encoder_outputs={"image": encoded})


def test_beams_and_several_answers_per_prompt(model):
    batch = random_quecc_inputs(*ROWS)
    length = batch["input_ids"].shape[1]
    beams = model.generate(**batch, num_beams=3, num_return_sequences=2, **NEW)
    assert torch.equal(beams[:, :length], batch["input_ids"].repeat_interleave(2, dim=0))
    for i in range(len(ROWS)):
        alone = answers(model, one_prompt(batch, ROWS, i), num_beams=3, num_return_sequences=2)
        assert torch.equal(beams[2 * i : 2 * i + 2, length:], alone)
    torch.manual_seed(0)
    samples = answers(model, batch, do_sample=True, num_return_sequences=4)
    assert samples.shape == (16, 6) and len({tuple(answer) for answer in samples[:4].tolist()}) > 1


@pytest.mark.parametrize(
    "kwargs",
    [{"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}, {"logits_to_keep": 1}],
    ids=str,
)
def test_caches_give_the_same_answer(model, kwargs):
    inputs = random_quecc_inputs(*ROWS)
    assert torch.equal(answers(model, inputs, **kwargs), answers(model, inputs))


def test_tokens_that_are_guessed_ahead_give_the_greedy_answer(model):
    inputs = random_quecc_inputs([WHERE])
    expected = answers(model, inputs)
    assert torch.equal(answers(model, inputs, prompt_lookup_num_tokens=2), expected)
    for seed in (0, 1):
        assert torch.equal(answers(model, inputs, assistant_model=random_quecc_model(seed=seed)), expected)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="older releases drop the images of chunked prompts"
)
def test_prefill_in_chunks_gives_the_greedy_answer(model):
    for rows in (([WHERE],), ROWS):
        inputs = random_quecc_inputs(*rows)
        assert torch.equal(answers(model, inputs, prefill_chunk_size=3), answers(model, inputs))


@needs_tracing
def test_a_compiled_forward_computes_the_same(model):
    torch._dynamo.reset()
    inputs = random_quecc_inputs(*ROWS)
    expected = model(**inputs).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, expected)


@pytest.mark.parametrize("nothing", [None, {}, {"image": None}], ids=str)
def test_no_encoded_images(model, nothing):
    inputs = random_quecc_inputs([WHAT], [])
    kwargs = {"mm_encoder_outputs": nothing}
    torch.testing.assert_close(model(**inputs, **kwargs).logits, model(**inputs).logits)
    assert torch.equal(answers(model, inputs, **kwargs), answers(model, inputs))


class TestConversationFromACache:
    """The second turn goes on from the first one's cache."""

    @pytest.fixture
    def first(self, model):
        inputs = random_quecc_inputs([WHERE, HOW])
        cache = DynamicCache(config=model.config)
        sequences = model.generate(**inputs, past_key_values=cache, **NEW)
        return inputs, cache, torch.cat([sequences, torch.tensor([[41, 42]])], dim=1)

    def go_on(self, model, inputs: dict, ids: torch.Tensor, **kwargs) -> torch.Tensor:
        return answers(model, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, **kwargs)

    def encoded(self, model, inputs: dict) -> dict:
        return {"mm_encoder_outputs": {"image": model.get_image_features(**inputs)}}

    @pytest.mark.parametrize("passed", ["nothing", "images", "encoded images"])
    def test_equals_a_fresh_run(self, model, first, passed):
        """The images are in the cache, encoded for the first question, whether they are passed again or not."""
        inputs, cache, ids = first
        expected = self.go_on(model, inputs, ids)
        images = image_inputs(inputs)
        again = {"nothing": {}, "images": images, "encoded images": self.encoded(model, images)}[passed]
        calls = count_calls(model.model.vision_tower)
        assert torch.equal(self.go_on(model, again, ids, past_key_values=cache), expected)
        assert not calls

    @pytest.mark.parametrize(
        "passed, num_beams",
        [("the new image", 1), ("all images", 1), ("all images encoded", 1), ("all images", 2)],
    )
    def test_a_further_image(self, model, first, passed, num_beams):
        inputs, cache, ids = first
        new = random_quecc_inputs([WHAT])
        ids = torch.cat([ids, new["input_ids"]], dim=1)
        every = {"pixel_values": torch.cat([inputs["pixel_values"], new["pixel_values"]])}
        every["query_input_ids"], every["query_attention_mask"] = pad([[1, *WHERE], [1, *HOW], [1, *WHAT]])
        expected = self.go_on(model, every, ids, num_beams=num_beams)
        cache.batch_repeat_interleave(num_beams)
        encoded = self.encoded(model, every)
        given = {"the new image": new, "all images": every, "all images encoded": encoded}[passed]
        assert torch.equal(self.go_on(model, given, ids, past_key_values=cache, num_beams=num_beams), expected)
        assert len(encoded["mm_encoder_outputs"]["image"].pooler_output) == 3

    def test_a_batch(self, model):
        """Prompts of several lengths, in which the second turn shows a further image or none."""
        first = random_quecc_inputs([WHAT, HOW], [], [WHERE])
        sequences = model.generate(**first, past_key_values=(cache := DynamicCache(config=model.config)), **NEW)
        image = [IMAGE_TOKEN_ID] * 4
        ids = torch.cat([sequences, torch.tensor([[41, *image], [41, *image], [41, 42, 43, 44, 45]])], dim=1)
        mask = torch.cat([first["attention_mask"], torch.ones(3, ids.shape[1] - first["attention_mask"].shape[1])], 1)
        second = {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": random_pixels(5)[[0, 1, 3, 4, 2]]}
        queries = [[1, *question] for question in (WHAT, HOW, WHERE, WHAT, WHERE)]
        second["query_input_ids"], second["query_attention_mask"] = pad(queries)
        expected = answers(model, second)
        shapes = count_calls(model.model.vision_tower)
        assert torch.equal(answers(model, second, past_key_values=cache), expected)
        assert shapes == [(2, 3, 28, 28)]

    def test_only_the_new_tokens_are_passed(self, model, first):
        inputs, cache, ids = first
        expected = self.go_on(model, inputs, ids)
        new = ids[:, cache.get_seq_length() :]
        output = model.generate(new, attention_mask=torch.ones_like(ids), past_key_values=cache, **NEW)
        assert torch.equal(output[:, new.shape[1] :], expected)


# ------------------------------------------------------------------------------------------- number of visual tokens


@pytest.mark.parametrize("where", ["argument", "generation_config", "model's generation_config"])
def test_another_number_of_visual_tokens_is_refused(model, where):
    inputs = random_quecc_inputs([WHAT])

    def ask(m):
        if where == "argument":
            return model.generate(**inputs, num_visual_tokens=m, **NEW)
        config = GenerationConfig(num_visual_tokens=m, eos_token_id=None, **NEW)
        if where == "generation_config":
            return model.generate(**inputs, generation_config=config)
        model.generation_config = config
        return model.generate(**inputs)

    for m in (1, 5, "auto", [4, 4]):
        with pytest.raises(ValueError, match="`num_visual_tokens` is .*, but every image gets 4 visual tokens"):
            ask(m)
    assert torch.equal(ask(4)[:, -6:], ask(None)[:, -6:])


@pytest.mark.parametrize("num_placeholders, num_images", [(3, 1), (5, 1), (4, 2), (8, 1)])
def test_placeholders_that_do_not_match_the_images_are_refused(model, num_placeholders, num_images):
    inputs = {
        "input_ids": torch.tensor([[1, *[IMAGE_TOKEN_ID] * num_placeholders, 5]]),
        "pixel_values": random_pixels(num_images),
        "query_input_ids": torch.ones(num_images, 2, dtype=torch.long),
    }
    message = f"do not match: {num_placeholders} image tokens in the prompts, {4 * num_images} visual tokens"
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            call(**inputs)
