"""Attention implementations and dtypes: the same answers on every path, at every m."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from transformers import AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.configs import VISION_CONFIG, tiny_config
from tests.builders.models import random_model
from tests.builders.numbers import relative_error
from tests.builders.paths import CHECKPOINT, PICTURES


ALL_M = range(1, 17)
TEXTS = (
    "USER: <image>\nList the items. ASSISTANT:",
    "USER: <image>\n<image>\nIs there any footwear? ASSISTANT:",
    "USER: Hello. ASSISTANT:",
)
NEW = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def embedded_processor():
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def reference() -> MQTLlavaForConditionalGeneration:
    return load(attn_implementation="eager")


def load(dtype: torch.dtype = torch.float32, **kwargs) -> MQTLlavaForConditionalGeneration:
    return MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=dtype, **kwargs).eval()


def ask(processor, m: int, padding_side: str = "left") -> dict[str, torch.Tensor]:
    """Prompts with one image, with two and with none."""
    images = [Image.open(PICTURES / f"mosaic_{i}.png") for i in (0, 1, 2)]
    return processor(
        images=images, text=list(TEXTS), num_visual_tokens=m, padding=True, padding_side=padding_side,
        return_tensors="pt",
    )  # fmt: skip


@torch.no_grad()
def text_logits(model, inputs: dict) -> torch.Tensor:
    """In float32 on the CPU, of what is no padding, but for the placeholder, which is never predicted."""
    logits = model(**inputs.to(model.device)).logits.float().cpu()[inputs["attention_mask"].cpu() == 1]
    return logits[:, torch.arange(logits.shape[1]) != model.config.image_token_id]


# ---------------------------------------------------------------------------------------------- eager, SDPA and flex


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    "attn_implementation",
    ["sdpa", "flex_attention", {"vision_config": "flex_attention", "text_config": "sdpa"}],
    ids=["sdpa", "flex", "flex and sdpa"],
)
def test_attention_implementations_agree(reference, embedded_processor, attn_implementation, padding_side):
    """To 1e-5 in float32 at all m. Flex attention without compiling it: the same masks and dispatch, in seconds."""
    model = load(attn_implementation=attn_implementation)
    with torch.compiler.set_stance("force_eager"):
        for m in ALL_M:
            inputs = ask(embedded_processor, m, padding_side)
            assert relative_error(text_logits(model, inputs), text_logits(reference, inputs)) < 1e-5


def test_attention_implementations_agree_with_256_queries(golden_model, processor):
    image = Image.open(PICTURES / "mosaic_0.png")
    expected = {}
    for attn_implementation in ("eager", "sdpa", "flex_attention"):
        golden_model.set_attn_implementation(attn_implementation)
        for m in (1, 16, 64, 256):
            inputs = processor(images=image, text=TEXTS[0], num_visual_tokens=m, return_tensors="pt")
            with torch.compiler.set_stance("force_eager"):
                logits = text_logits(golden_model, inputs)
            assert relative_error(logits, expected.setdefault(m, logits)) < 1e-5
    golden_model.set_attn_implementation("sdpa")


def test_flex_attention_answers(embedded_processor):
    model, sdpa = load(attn_implementation="flex_attention"), load(attn_implementation="sdpa")
    for m in (1, 7, 16):
        inputs = ask(embedded_processor, m)
        with torch.compiler.set_stance("force_eager"):
            actual = model.generate(**inputs, **NEW)
        assert torch.equal(actual, sdpa.generate(**inputs, **NEW))


def test_every_layer_calls_the_attention_that_was_asked_for(embedded_processor, monkeypatch):
    model, calls = load(), []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(*args, **kwargs):
        calls.append(args[0])
        return sdpa(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "counted", counted)
    layers = [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]
    model.set_attn_implementation("counted")
    text_logits(model, ask(embedded_processor, 3))
    assert calls == [layer.self_attn for layer in layers]


# ------------------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype, bound, typical", [(torch.bfloat16, 0.15, 0.02), (torch.float16, 0.02, 0.003)])
def test_half_precision_at_every_m(reference, embedded_processor, dtype, bound, typical, attn_implementation):
    """
    Against float32: every logit finite, the greatest difference below 0.15 (bfloat16) and 0.02 (float16) of the
    greatest logit, the difference as a whole (Frobenius norm) below 2% and 0.3%. Measured were at most 0.091, 0.013,
    1.3% and 0.21%.
    """
    model = load(dtype, attn_implementation=attn_implementation)
    for m in ALL_M:
        inputs = ask(embedded_processor, m)
        actual, expected = text_logits(model, inputs), text_logits(reference, inputs)
        assert actual.isfinite().all()
        assert relative_error(actual, expected) < bound
        assert (actual - expected).norm() < typical * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow_in_the_query_transformer(dtype):
    """Nor where one channel of the patches is a thousand times the others, as in CLIP, at any m of 256."""
    config = tiny_config(vision_config={**VISION_CONFIG, "image_size": 56}, max_visual_tokens=256)
    resampler = random_model(config).model.resampler.to(dtype)
    patches = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0))
    patches[..., 3] *= 1e3
    with torch.no_grad():
        for m in range(1, 257):
            assert resampler(patches.to(dtype), m).isfinite().all()


# -------------------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.gpu
@pytest.mark.parametrize("number, is_available", [(2, is_flash_attn_2_available), (3, is_flash_attn_3_available)])
@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_flash_attention_equals_sdpa(golden_model, processor, tmp_path, number, is_available, dtype, bound):
    if not is_available():
        pytest.skip(f"FlashAttention{number} is not installed")
    golden_model.save_pretrained(tmp_path)
    models = [
        MQTLlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype, attn_implementation=name).cuda().eval()
        for name in (f"flash_attention_{number}", "sdpa")
    ]
    for m in (1, 16, 64, 256):
        for padding_side in ("left", "right"):
            inputs = ask(processor, m, padding_side)
            actual, expected = (text_logits(model, inputs) for model in models)
            assert actual.isfinite().all()
            assert relative_error(actual, expected) < bound


class Prompts(torch.utils.data.Dataset):
    def __init__(self, processor):
        self.processor = processor

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return ask(self.processor, 1 + index)


def test_pinned_memory_asks_for_every_tensor(embedded_processor, monkeypatch):
    """What a DataLoader with `pin_memory` does with the processor's output: nothing in it is left behind."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor)
    inputs = ask(embedded_processor, 3)
    copied = pin_memory(inputs)
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in inputs.values()}
    assert type(copied) is type(inputs) and set(copied) == set(inputs)


@pytest.mark.gpu
def test_pinned_memory(embedded_processor):
    model = load().cuda()
    loader = DataLoader(Prompts(embedded_processor), batch_size=None, num_workers=1, pin_memory=True)
    for index, inputs in enumerate(loader):
        assert all(tensor.is_pinned() for tensor in inputs.values())
        inputs = inputs.to("cuda", non_blocking=True)
        assert all(tensor.is_cuda for tensor in inputs.values())
        expected = text_logits(model, ask(embedded_processor, 1 + index))
        torch.testing.assert_close(text_logits(model, inputs), expected)
