"""
How often `torch.compile` compiles when m and the prompt length change from call to call: 20 prompts, all m in
1..16, no two of one length with the same m. The bounds do not depend on how many prompts there are.
"""

import pytest
import torch
from transformers import CompileConfig

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.models import random_model
from tests.builders.prompts import random_inputs
from tests.builders.versions import needs_tracing


pytestmark = [needs_tracing, pytest.mark.costly]
NEW = {"max_new_tokens": 4}
NUM_PROMPTS = 20
ONE_IMAGE = [([1 + i % 16],) for i in range(NUM_PROMPTS)]
BATCHES = [
    (([1 + i % 16],), ([1 + i % 16], [16]), ([1 + i % 16, 16 - i % 16], []), ([3, 5, 1 + i % 16],))[i % 4]
    for i in range(NUM_PROMPTS)
]
BATCH = random_inputs([4, 4], [2], [])


def prompts(all_rows: list[tuple[list[int], ...]]) -> list[dict[str, torch.Tensor]]:
    """Inputs with these visual tokens per image, and texts of 1 to 23 further tokens."""
    batches = []
    for i, rows in enumerate(all_rows):
        inputs = random_inputs(*rows)
        text = torch.full((len(rows), 1 + 7 * i % 23), 60 + i % 20)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], text], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(text)], dim=1)
        batches.append(inputs)
    return batches


@pytest.fixture(scope="module")
def reference() -> MQTLlavaForConditionalGeneration:
    """The model that is not compiled."""
    return random_model()


@pytest.fixture
def graphs():
    """A list for what is compiled with `backend(graphs)`. Where torch would give up compiling, it raises."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield []


def backend(graphs: list, name: str = "eager"):
    def compile_and_count(graph, example_inputs):
        compiled = torch._dynamo.lookup_backend(name)(graph, example_inputs)
        graphs.append(graph)  # afterwards: inductor may give up and be called again
        return compiled

    return compile_and_count


def assert_same_answers(model, reference, batches: list[dict], num_visual_tokens: int | None = None, **kwargs) -> None:
    for inputs in batches:
        expected = reference.generate(**inputs, num_visual_tokens=num_visual_tokens, **NEW)
        assert torch.equal(model.generate(**inputs, num_visual_tokens=num_visual_tokens, **NEW, **kwargs), expected)


@pytest.mark.parametrize("longest_first, bound", [(True, 1), (False, 2)])
def test_decoding_step(reference, graphs, longest_first, bound):
    """
    `generate(cache_implementation="static")`. The cache is as long as the longest prompt so far needs: one graph if
    that came first, else a second one that takes caches of any length.
    """
    model, batches = random_model(), prompts(ONE_IMAGE)
    config = CompileConfig(backend=backend(graphs), fullgraph=True, mode=None)
    config._compile_all_devices = True  # by itself, transformers compiles on accelerators only
    if longest_first:
        batches.sort(key=lambda inputs: -inputs["input_ids"].shape[1])
    assert_same_answers(model, reference, batches, cache_implementation="static", compile_config=config)
    assert len(graphs) == bound


@pytest.mark.parametrize("name", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_decoding_step_at_several_m(reference, graphs, name):
    """As transformers itself compiles it on accelerators, for a batch that is re-sized."""
    model = random_model()
    model._valid_auto_compile_criteria = lambda *args: True
    config = CompileConfig(backend=backend(graphs, name), fullgraph=True, mode=None)
    for m in (None, 3):
        assert_same_answers(model, reference, [BATCH], m, cache_implementation="static", compile_config=config)
    assert 1 <= len(graphs) <= 2


@pytest.mark.parametrize("cache_implementation", ["static", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_decoder(reference, graphs, cache_implementation):
    """
    `model.model.language_model.compile(dynamic=True)`, the setting for anything but one image per call: prefill and
    decoding step, each for one prompt and for several and with and without padding, which is at most 8 graphs,
    whatever the number of images.
    """
    model = random_model()
    model.model.language_model.compile(dynamic=True, backend=backend(graphs))
    assert_same_answers(model, reference, prompts(BATCHES), cache_implementation=cache_implementation)
    assert 2 <= len(graphs) <= 8


@pytest.mark.parametrize(
    "call, cache_implementation",
    [("model.forward = torch.compile(model.forward)", "static"), ("model.compile()", "dynamic")],
)
def test_whole_model(reference, graphs, call, cache_implementation):
    """With `dynamic=True`, for one image per call: prefill at m = 1 and at any other m, and the decoding step."""
    model = random_model()
    if call == "model.compile()":
        model.compile(dynamic=True, backend=backend(graphs))
    else:
        model.forward = torch.compile(model.forward, dynamic=True, backend=backend(graphs))
    assert_same_answers(model, reference, prompts(ONE_IMAGE), cache_implementation=cache_implementation)
    assert 2 <= len(graphs) <= 3


@pytest.mark.slow
def test_whole_model_on_batches(reference, graphs):
    """As before, with a graph for each number of images in a batch, and for one prompt and several."""
    model = random_model()
    model.compile(dynamic=True, backend=backend(graphs))
    assert_same_answers(model, reference, prompts(BATCHES))
    assert 2 <= len(graphs) <= 8


@pytest.mark.slow
def test_forward_from_pixels(reference, graphs):
    """
    Outside of `generate`, the images are encoded within the compiled call. Placeholders are counted between graphs, of
    which there are more than in `generate`, and several twice: for m = 1 and for any other.
    """
    model = random_model()
    model.compile(dynamic=True, backend=backend(graphs))
    for inputs in prompts(ONE_IMAGE):
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, reference(**inputs).logits)
    assert 2 <= len(graphs) <= 12


def test_images_in_one_graph(reference, graphs):
    """`torch.compile(model.get_image_features, fullgraph=True, dynamic=True)`: at m = 1 and at any other m."""
    pixel_values = random_inputs([1])["pixel_values"]
    model = random_model()
    model.get_image_features(pixel_values)  # the first call of a vision tower sets hooks, which cannot be traced
    encode = torch.compile(model.get_image_features, fullgraph=True, dynamic=True, backend=backend(graphs))
    for i in range(NUM_PROMPTS):
        counts = [1 + i % 16]
        with torch.no_grad():
            (expected,) = reference.get_image_features(pixel_values, counts).pooler_output
            (actual,) = encode(pixel_values, counts).pooler_output
        torch.testing.assert_close(actual, expected)
    assert 1 <= len(graphs) <= 2


def test_query_transformer(reference, graphs):
    """`model.model.resampler.compile(dynamic=True)`: for one image and for several, at m = 1 and at any other m."""
    resampler = random_model().model.resampler
    resampler.compile(dynamic=True, backend=backend(graphs))
    generator = torch.Generator().manual_seed(0)
    for i in range(NUM_PROMPTS):
        patches = torch.randn(1 + i % 5, 16, 32, generator=generator)
        with torch.no_grad():
            actual, expected = (part(patches, 1 + i % 16) for part in (resampler, reference.model.resampler))
        torch.testing.assert_close(actual, expected)
    assert 1 <= len(graphs) <= 4


def test_one_graph_without_breaks(reference, graphs):
    """`fullgraph=True` with encoded images. A prompt that does not fit them is refused within the graph."""
    inputs = random_inputs([4, 2])
    counts = inputs.pop("visual_token_counts")
    encoded = reference.get_image_features(inputs.pop("pixel_values"), counts)
    inputs["mm_encoder_outputs"] = {"image": encoded}
    compiled = torch.compile(reference, dynamic=True, fullgraph=True, backend=backend(graphs))
    torch.testing.assert_close(compiled(**inputs).logits, reference(**inputs).logits)
    assert len(graphs) == 1
    inputs["input_ids"][0, 3] = 5
    with pytest.raises(RuntimeError, match="Image features and image tokens do not match"):
        compiled(**inputs)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["whole model", "decoder"])
def test_inductor(reference, graphs, part):
    model = random_model()
    compiled = model if part == "whole model" else model.model.language_model
    compiled.compile(dynamic=True, backend=backend(graphs, "inductor"))
    assert_same_answers(model, reference, prompts(ONE_IMAGE), cache_implementation="static")
    assert 2 <= len(graphs) <= 3
