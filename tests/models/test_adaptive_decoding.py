"""What a user sees of adaptive budgets: the argument, generation configs, pipelines, what is returned and refused."""

import copy
import dataclasses

import pytest
import torch
from PIL import Image
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, pipeline
from transformers.generation.streamers import BaseStreamer

from mqt_llava import AdaptiveBudget, MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from mqt_llava.models.visual_token_cache import recall_prompts
from tests.builders.models import count_calls, enlarge_weights
from tests.builders.paths import CHECKPOINT, PICTURES
from tests.builders.prompts import random_inputs


NEW = 5
STOP, CLIMB = {"confidence": 0.0}, {"confidence": 1.0, "margin": 1.0}


def generate(model, inputs, num_visual_tokens=None, **kwargs):
    kwargs = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    return model.generate(**inputs, num_visual_tokens=num_visual_tokens, **kwargs)


def numbers(cache) -> list[list[int]]:
    """Visual tokens of the images that a cache holds, by row."""
    return [[image.num_visual_tokens for image in row] for row in recall_prompts(cache).images]


def new_tokens(output, inputs) -> list[list[int]]:
    return output.sequences[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def inputs():
    """Two images, one, none, one with a longer text behind it."""
    return random_inputs([16, 16], [16], [], [16])


@pytest.fixture
def divided(tiny_model, inputs):
    """A budget at which the prompts stop at different levels."""
    budget = AdaptiveBudget([1, 4, 16], unended_power=1, **CLIMB)
    values = generate(tiny_model, inputs, budget).visual_token_confidence[:, 0]
    median = float(values[~values.isnan()].median())
    budget = AdaptiveBudget([1, 4, 16], confidence=median - 1e-4, unended_power=1)
    assert len(generate(tiny_model, inputs, budget).visual_token_level.unique()) > 2
    return budget


class TestBudget:
    @pytest.mark.parametrize(
        "kwargs, error, message",
        [
            ({"levels": []}, ValueError, "`levels` is empty"),
            ({"levels": 16}, TypeError, "`levels` is 16, but must be a list of integers"),
            ({"levels": "16"}, TypeError, "must be a list of integers"),
            ({"levels": [1, 4.0]}, TypeError, "must be a list of integers"),
            ({"levels": [True, 4]}, TypeError, "must be a list of integers"),
            ({"levels": [4, 4]}, ValueError, r"`levels` is \[4, 4\], but must be positive and ascend"),
            ({"levels": [4, 1]}, ValueError, "must be positive and ascend"),
            ({"levels": [0, 1]}, ValueError, "must be positive and ascend"),
            ({"confidence": 1.1}, ValueError, r"`confidence` is 1.1, but must be a number in 0..1"),
            ({"confidence": float("nan")}, ValueError, "must be a number in 0..1"),
            ({"confidence": "0.9"}, ValueError, "must be a number in 0..1"),
            ({"margin": -0.1}, ValueError, r"`margin` is -0.1, but must be a number in 0..1"),
            ({"margin": True}, ValueError, "must be a number in 0..1"),
            ({"num_probed_tokens": 0}, ValueError, "`num_probed_tokens` is 0, but must be a positive integer"),
            ({"num_probed_tokens": 1.5}, ValueError, "must be a positive integer"),
        ],
        ids=str,
    )
    def test_wrong_arguments(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            AdaptiveBudget(**kwargs)

    def test_default_levels(self):
        levels = {m: AdaptiveBudget().levels_for(m) for m in (256, 64, 16, 4, 1)}
        assert levels == {256: [16, 64, 256], 64: [4, 16, 64], 16: [1, 4, 16], 4: [1, 4], 1: [1]}

    def test_levels_above_m(self, tiny_model, inputs):
        with pytest.raises(ValueError, match=r"`levels` is \[1, 17\], but must be in 1..16"):
            generate(tiny_model, inputs, AdaptiveBudget([1, 17]))


def levels_of(model, inputs, *args, **kwargs) -> set[int]:
    """Of the prompts that have images."""
    return set(generate(model, inputs, *args, **kwargs).visual_token_level.tolist()) - {0}


class TestPrecedence:
    """The argument, the configuration that is passed, the model's."""

    def test_argument_then_passed_then_models(self, tiny_model, inputs):
        def config(**kwargs):
            return GenerationConfig(max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, **kwargs)

        passed = config(num_visual_tokens=AdaptiveBudget([3, 16], **STOP).to_dict())
        assert "visual_token_level" not in generate(tiny_model, inputs)
        tiny_model.generation_config.num_visual_tokens = AdaptiveBudget([2, 16], **STOP).to_dict()
        assert levels_of(tiny_model, inputs) == {2}
        assert tiny_model.generate(**inputs, generation_config=passed).visual_token_level.max() == 3
        output = tiny_model.generate(
            **inputs, generation_config=passed, num_visual_tokens=AdaptiveBudget([4, 16], **STOP)
        )
        assert output.visual_token_level.max() == 4
        fixed = tiny_model.generate(**inputs, generation_config=passed, num_visual_tokens=4)
        assert "visual_token_level" not in fixed and torch.equal(fixed.sequences, output.sequences)

    def test_auto_is_the_calibrated_budget(self, tiny_model, inputs):
        assert levels_of(tiny_model, inputs, "auto") <= {1, 4, 16}
        tiny_model.generation_config.adaptive_budget = AdaptiveBudget([2, 16], **STOP).to_dict()
        assert levels_of(tiny_model, inputs, "auto") == {2}
        passed = GenerationConfig(adaptive_budget=AdaptiveBudget([3, 16], **STOP).to_dict())
        assert levels_of(tiny_model, inputs, "auto", generation_config=passed) == {3}
        assert levels_of(tiny_model, inputs, AdaptiveBudget([4, 16], **STOP)) == {4}
        assert levels_of(tiny_model, inputs, {"levels": [5, 16], **STOP}) == {5}

    def test_a_calibrated_budget_is_used_with_auto_only(self, tiny_model, inputs):
        expected, at_4 = generate(tiny_model, inputs), generate(tiny_model, inputs, 4)
        tiny_model.generation_config.adaptive_budget = AdaptiveBudget([2, 16], **STOP).to_dict()
        for output, other in ((generate(tiny_model, inputs), expected), (generate(tiny_model, inputs, 4), at_4)):
            assert "visual_token_level" not in output and torch.equal(output.sequences, other.sequences)

    @pytest.mark.parametrize("as_dict", [True, False])
    def test_saved_with_the_model(self, tiny_model, inputs, tmp_path, as_dict):
        config, budget = tiny_model.generation_config, AdaptiveBudget([2, 16], **STOP).to_dict()
        config.num_visual_tokens = budget if as_dict else "auto"
        config.adaptive_budget = {"levels": [7, 16]} if as_dict else budget
        tiny_model.save_pretrained(tmp_path)
        loaded = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path)
        assert loaded.generation_config.num_visual_tokens == config.num_visual_tokens
        assert loaded.generation_config.adaptive_budget == config.adaptive_budget
        assert GenerationConfig.from_pretrained(tmp_path).num_visual_tokens == config.num_visual_tokens
        assert levels_of(loaded, inputs) == {2}


class TestWhatIsReturned:
    def test_fields(self, tiny_model, inputs, divided):
        output = generate(tiny_model, inputs, divided)
        levels, confidence = output.visual_token_level, output.visual_token_confidence
        assert levels.shape == output.visual_tokens_processed.shape == (4,)
        assert levels.dtype == output.visual_tokens_processed.dtype == torch.int64
        assert confidence.shape == (4, 3) and confidence.dtype == torch.float32
        for level, values in zip(levels.tolist(), confidence):
            num_probed = 0 if level == 0 else min([1, 4, 16].index(level) + 1, 2)  # the highest is not probed
            assert not values[:num_probed].isnan().any() and values[num_probed:].isnan().all()
            assert ((values[:num_probed] >= divided.confidence).tolist() + [True]).index(True) == (
                num_probed - (level != 16) if level else 0
            )
        assert levels[2] == 0

    def test_without_a_dict_tokens_alone(self, tiny_model, inputs, divided):
        output = tiny_model.generate(**inputs, num_visual_tokens=divided, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(output, generate(tiny_model, inputs, divided).sequences)
        assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])

    def test_scores_and_states(self, tiny_model, inputs, divided):
        names = ("scores", "logits", "attentions", "hidden_states")
        tiny_model.set_attn_implementation("eager")
        output = generate(tiny_model, inputs, divided, **{f"output_{name}": True for name in names})
        cached = output.past_key_values.get_seq_length()
        for name in names:
            assert len(output[name]) == NEW
        for step in range(NEW):
            assert output.scores[step].shape == output.logits[step].shape == (4, 100)
            assert all(states.shape == (4, 1, 32) for states in output.hidden_states[step])
            length = cached - NEW + 1 + step
            assert all(weights.shape == (4, 4, 1, length) for weights in output.attentions[step])

    def test_margin_alone_makes_it_climb(self, tiny_model, inputs):
        assert levels_of(tiny_model, inputs, AdaptiveBudget([1, 16], confidence=0.0, margin=1.0)) == {16}
        assert levels_of(tiny_model, inputs, AdaptiveBudget([1, 16], confidence=0.0)) == {1}

    def test_tokens_after_the_end_of_an_answer_do_not_count(self, tiny_model):
        """Not even while the other answers of the batch go on."""
        enlarge_weights(tiny_model, seed=2)  # by which the first token is surer than those behind it
        inputs, levels = random_inputs([16], [16]), [1, 16]
        ending, going = (answer[0] for answer in new_tokens(generate(tiny_model, inputs, 1), inputs))
        assert ending != going

        def confidence(num_probed, power=1, **kwargs):
            budget = AdaptiveBudget(levels, num_probed_tokens=num_probed, unended_power=power, **CLIMB)
            return generate(tiny_model, inputs, budget, **kwargs).visual_token_confidence[:, 0].tolist()

        first, fourth, ended = confidence(1), confidence(4), confidence(4, eos_token_id=ending)
        assert ended[0] == pytest.approx(first[0]) and ended[0] > 1.01 * fourth[0]
        assert ended[1] == pytest.approx(fourth[1]) and ended[1] < first[1]
        assert confidence(4, 2, eos_token_id=ending) == pytest.approx([ended[0], ended[1] ** 2])

    def test_no_gradients(self, tiny_model, inputs, divided):
        output = generate(tiny_model, inputs, divided, output_logits=True)
        assert torch.is_grad_enabled() and not output.visual_token_confidence.requires_grad
        assert not output.logits[0].requires_grad and not output.past_key_values.layers[0].keys.requires_grad
        assert all(parameter.grad is None for parameter in tiny_model.parameters())

    def test_bfloat16(self, tiny_model, inputs):
        tiny_model.to(torch.bfloat16)
        for constants in (STOP, CLIMB):
            output = generate(tiny_model, inputs, AdaptiveBudget(**constants))
            assert output.visual_token_confidence.dtype == torch.float32
            assert output.visual_token_level.max() == (1 if constants is STOP else 16)


class Recorder(BaseStreamer, LogitsProcessor):
    """Both what is streamed and what processors see."""

    def __init__(self):
        self.streamed, self.seen = [], []

    def put(self, value):
        self.streamed += value.flatten().tolist()

    def end(self):
        self.streamed.append("end")

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        return scores


def test_streamers_processors_and_max_length_refer_to_the_resized_prompt(tiny_model):
    inputs, at_4, recorder = random_inputs([16]), random_inputs([4])["input_ids"], Recorder()
    budget = AdaptiveBudget([2, 4], **CLIMB)
    output = generate(
        tiny_model, inputs, budget, max_new_tokens=None, max_length=at_4.shape[1] + 3, streamer=recorder,
        logits_processor=[recorder],
    )  # fmt: skip
    (answer,) = new_tokens(output, inputs)
    assert len(answer) == 3
    assert recorder.streamed == [*at_4[0].tolist(), *answer, "end"]
    assert recorder.seen[0] == at_4.tolist() and recorder.seen[-1] == [[*at_4[0].tolist(), *answer[:2]]]


def test_positional_prompt_without_mask(tiny_model):
    inputs = random_inputs([16])
    expected = generate(tiny_model, inputs, 4)
    output = tiny_model.generate(
        inputs["input_ids"], pixel_values=inputs["pixel_values"], num_visual_tokens={"levels": [2, 4], **CLIMB},
        max_new_tokens=NEW, do_sample=False,
    )  # fmt: skip
    assert torch.equal(output, expected.sequences)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_masks_and_none_as_other_callers_pass_them(tiny_model, inputs, divided, dtype):
    expected = generate(tiny_model, inputs, divided)
    inputs["attention_mask"] = inputs["attention_mask"].to(dtype)
    output = generate(tiny_model, inputs, divided, past_key_values=None, mm_encoder_outputs=None)
    assert torch.equal(output.sequences, expected.sequences)


class TestConversation:
    """The second turn goes on from what the first returned."""

    @pytest.fixture
    def first(self, tiny_model):
        inputs = random_inputs([16, 16])
        output = generate(tiny_model, inputs, AdaptiveBudget([2, 4, 16], confidence=0.0))
        assert numbers(output.past_key_values) == [[2, 2]]
        further = torch.tensor([[71, 72]])
        ids = torch.cat([output.sequences, further], dim=1)
        return output, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @pytest.mark.parametrize("m", [2, [2, 2], 1, 4, [3, 2]], ids=str)
    def test_at_the_same_level_and_at_another(self, tiny_model, first, m):
        output, inputs = first
        expected, calls = generate(tiny_model, inputs, m), count_calls(tiny_model.model.vision_tower)
        answer = generate(tiny_model, inputs, m, past_key_values=output.past_key_values)
        assert torch.equal(answer.sequences, expected.sequences)
        assert not calls or m not in (2, [2, 2])  # the images are in the cache

    @pytest.mark.parametrize("budget", ["auto", AdaptiveBudget()], ids=["auto", "budget"])
    def test_an_adaptive_one_is_refused(self, tiny_model, first, budget):
        output, inputs = first
        cache = copy.deepcopy(output.past_key_values)
        with pytest.raises(ValueError, match="needs the whole prompt as `input_ids`, without .* filled"):
            generate(tiny_model, inputs, budget, past_key_values=cache)

    def test_a_batch_that_stopped_at_different_levels(self, tiny_model, inputs, divided):
        output = generate(tiny_model, inputs, divided)
        rows = numbers(output.past_key_values)
        assert [set(row) - {level} for row, level in zip(rows, output.visual_token_level.tolist())] == [set()] * 4
        ids = torch.cat([output.sequences, torch.tensor([[71, 72]] * 4)], dim=1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW + 2), value=1)
        second = {**inputs, "input_ids": ids, "attention_mask": mask}
        counts = [count for row in rows for count in row]
        expected = generate(tiny_model, second, counts)
        answer = generate(tiny_model, second, counts, past_key_values=output.past_key_values)
        assert torch.equal(answer.sequences, expected.sequences)


class TestRefused:
    def test_inputs_embeds(self, tiny_model, inputs):
        inputs["inputs_embeds"] = tiny_model.get_input_embeddings()(inputs["input_ids"])
        for given in (inputs, {name: inputs[name] for name in inputs if name != "input_ids"}):
            with pytest.raises(ValueError, match="needs the whole prompt as `input_ids`, without `inputs_embeds`"):
                tiny_model.generate(**given, num_visual_tokens="auto", max_new_tokens=1)

    def test_missing_images(self, tiny_model, inputs):
        del inputs["pixel_values"]
        for kwargs in (inputs, {**inputs, "visual_token_counts": None}):
            with pytest.raises(ValueError, match="image tokens, but the images of the prompt are missing"):
                generate(tiny_model, kwargs, "auto")

    def test_one_image_too_few(self, tiny_model, inputs):
        inputs["pixel_values"] = inputs["pixel_values"][:2]
        del inputs["visual_token_counts"]
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            generate(tiny_model, inputs, "auto")

    def test_images_twice_and_encoded_into_too_few_tokens(self, tiny_model, inputs):
        encoded = {"image": tiny_model.get_image_features(inputs["pixel_values"], [4] * 4)}
        with pytest.raises(ValueError, match="both pixel_values and mm_encoder_outputs"):
            generate(tiny_model, inputs, "auto", mm_encoder_outputs=encoded)
        del inputs["pixel_values"]
        with pytest.raises(ValueError, match="Encode them without `visual_token_counts`"):
            generate(tiny_model, inputs, "auto", mm_encoder_outputs=encoded)
        output = generate(tiny_model, inputs, AdaptiveBudget([1, 4], **CLIMB), mm_encoder_outputs=encoded)
        assert output.visual_token_level.tolist() == [4, 4, 0, 4]

    def test_a_mask_of_another_shape(self, tiny_model, inputs):
        inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
        with pytest.raises(ValueError, match="the mask must be of the shape of the prompt"):
            generate(tiny_model, inputs, "auto")

    def test_other_words_and_unknown_keys(self, tiny_model, inputs):
        with pytest.raises(TypeError, match="`num_visual_tokens` is 'Auto', but must be an integer in 1..16"):
            generate(tiny_model, inputs, "Auto")
        with pytest.raises(TypeError, match="threshold"):
            generate(tiny_model, inputs, {"threshold": 0.9})

    @pytest.mark.parametrize("budget", ["auto", AdaptiveBudget()], ids=["auto", "budget"])
    def test_outside_generate(self, budget):
        """A processor knows no answer to be confident of."""
        processor = MQTLlavaProcessor.from_pretrained(CHECKPOINT)
        image = Image.new("RGB", (28, 28))
        with pytest.raises(TypeError, match="`num_visual_tokens` is .*, but must be an integer in 1..16"):
            processor(images=image, text="<image>", num_visual_tokens=budget)
        with pytest.raises(TypeError, match="must be an integer in 1..16"):
            processor(text="no image", num_visual_tokens=budget)
        with pytest.raises(TypeError, match="must be an integer in 1..16"):
            MQTLlavaProcessor(processor.image_processor, processor.tokenizer, 16, num_visual_tokens=budget)


def test_an_empty_cache_that_is_passed_is_filled(tiny_model, inputs, divided):
    expected, cache = generate(tiny_model, inputs, divided), DynamicCache(config=tiny_model.config)
    output = tiny_model.generate(
        **inputs, num_visual_tokens=divided, past_key_values=cache, max_new_tokens=NEW, do_sample=False
    )
    assert torch.equal(output, expected.sequences)
    assert numbers(cache) == numbers(expected.past_key_values)
    assert cache.get_seq_length() == expected.past_key_values.get_seq_length()


class TestEmbeddedCheckpoint:
    @pytest.fixture(scope="class")
    def pipe(self):
        return pipeline("image-text-to-text", model=str(CHECKPOINT))

    def ask(self, pipe, num_visual_tokens, question: str) -> str:
        content = [{"type": "image", "path": str(PICTURES / "mosaic_0.png")}]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        kwargs = {"num_visual_tokens": num_visual_tokens, "max_new_tokens": 40, "do_sample": False}
        (output,) = pipe(messages, generate_kwargs=kwargs, return_full_text=False)
        return output["generated_text"]

    @pytest.mark.parametrize("question", ["Is there any footwear?", "List the items in the second row."])
    def test_through_a_pipeline(self, pipe, question):
        at = {m: self.ask(pipe, m, question) for m in (1, 4, 16)}
        assert self.ask(pipe, AdaptiveBudget(**STOP), question) == at[1]
        assert self.ask(pipe, AdaptiveBudget([1, 4], **CLIMB), question) == at[4]
        assert self.ask(pipe, AdaptiveBudget(**CLIMB), question) == at[16]
        assert self.ask(pipe, {"levels": [4, 16], **STOP}, question) == at[4]
        assert self.ask(pipe, "auto", question) in at.values()

    def test_the_budget_is_unchanged(self, pipe):
        budget = AdaptiveBudget()
        before = dataclasses.replace(budget)
        self.ask(pipe, budget, "List the items.")
        assert budget == before
