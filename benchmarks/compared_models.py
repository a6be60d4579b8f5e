"""
What the benchmarks compare: MQT-LLaVA and LLaVA with random weights, prompts for them, and the FLOPs that they count.

Both have a vision tower of the same shape, and one decoder that they share, so that two of 7B fit on a GPU. LLaVA runs
all layers of its vision tower, as transformers does, MQT-LLaVA those up to feature layer -2. A prompt is text, an
image and text again, 64 text tokens in all; prompts of a batch are equally long, and no answer ends early.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from mqt_llava import MQTLlavaForConditionalGeneration


MAX_TOKENS, LLAVA_TOKENS = 256, 576
TEXT_BEFORE, TEXT_AFTER = 40, 24  # a system prompt, a question
TEXT_TOKENS = TEXT_BEFORE + TEXT_AFTER


@dataclass(frozen=True)
class Size:
    """The shapes are hidden size, MLP size, layers, attention heads, heads of keys and values."""

    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]
    vocabulary: int  # its last token is the placeholder
    tied: bool
    dtype: torch.dtype
    batch_size: int
    rounds: int


SIZES = {
    "tiny": Size((128, 512, 4, 4), (256, 688, 4, 4, 4), 1024, False, torch.float32, 2, rounds=3),
    "small": Size((128, 512, 4, 4), (256, 688, 4, 4, 4), 1024, False, torch.float32, 4, rounds=3),
    # CLIP-B's width and depth with 24 x 24 patches; SmolLM2-135M.
    "mid": Size((768, 3072, 12, 12), (576, 1536, 30, 9, 3), 49152, True, torch.float32, 2, rounds=3),
    # CLIP-L/14-336; Llama-3.2-1B with an untied head and Llama-2's vocabulary.
    "full": Size((1024, 4096, 24, 16), (2048, 8192, 16, 32, 8), 32064, False, torch.float32, 4, rounds=5),
    # CLIP-L/14-336; Llama-2-7B, its vocabulary padded to a multiple of 64.
    "7b": Size((1024, 4096, 24, 16), (4096, 11008, 32, 32, 32), 32064, False, torch.bfloat16, 8, rounds=5),
}


def build_models(
    size: Size, device: str, image_token_id: int | None = None
) -> tuple[MQTLlavaForConditionalGeneration, LlavaForConditionalGeneration]:
    """The two models, which share decoder and head. The placeholder is by default the vocabulary's last token."""
    image_token_id = size.vocabulary - 1 if image_token_id is None else image_token_id
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    vision_config = CLIPVisionConfig(**dict(zip(names, size.vision)), image_size=336, patch_size=14)
    text_config = LlamaConfig(**dict(zip(names, size.text)), vocab_size=size.vocabulary, tie_word_embeddings=size.tied)
    llava_config = LlavaConfig(
        vision_config=vision_config, text_config=text_config, image_token_id=image_token_id,
        tie_word_embeddings=size.tied,
    )  # fmt: skip
    with torch.device(device):
        llava = LlavaForConditionalGeneration._from_config(llava_config, dtype=size.dtype)
        vision_tower = CLIPVisionModel._from_config(vision_config, dtype=size.dtype)
    decoder = decoder_of(llava)
    mqt = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        vision_tower, decoder, image_token_id=image_token_id, max_visual_tokens=MAX_TOKENS
    )
    return mqt, llava


def decoder_of(model: PreTrainedModel) -> LlamaForCausalLM:
    """The decoder of a model by itself."""
    with torch.device("meta"):
        decoder = LlamaForCausalLM(model.config.text_config)
    decoder.model, decoder.lm_head = model.model.language_model, model.lm_head
    return decoder


def answer_in_full(model: PreTrainedModel) -> None:
    """Lets every answer have all the tokens that are asked for."""
    model.eval().generation_config.update(do_sample=False, eos_token_id=None, pad_token_id=0)


class Models:
    """The two models on a device, and calls of them."""

    def __init__(self, size: Size, device: str = "cpu"):
        self.size, self.device = size, device
        self.mqt, self.llava = build_models(size, device)
        answer_in_full(self.mqt)
        answer_in_full(self.llava)
        self.pixels = torch.randn(size.batch_size, 3, 336, 336, device=device, dtype=size.dtype)
        self.text = torch.randint(1, size.vocabulary - 1, (size.batch_size, TEXT_TOKENS), device=device)

    def prompt(self, visual_tokens: int, batch: int) -> torch.Tensor:
        return join_prompt(*self.text[:batch].split([TEXT_BEFORE, TEXT_AFTER], dim=1), visual_tokens, self.mqt)

    def generate(self, model: PreTrainedModel, visual_tokens: int, batch: int, **kwargs) -> Callable:
        """A call of `generate` with a prompt for so many visual tokens."""
        return call_generate(model, self.prompt(visual_tokens, batch), self.pixels[:batch], **kwargs)


def join_prompt(before: torch.Tensor, after: torch.Tensor, visual_tokens: int, model: PreTrainedModel) -> torch.Tensor:
    image = before.new_full((len(before), visual_tokens), model.config.image_token_id)
    return torch.cat([before, image, after], dim=1)


def call_generate(model: PreTrainedModel, input_ids: torch.Tensor, pixels: torch.Tensor, **kwargs) -> Callable:
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}
    return partial(model.generate, **inputs, **kwargs)


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args, **kwargs) -> int:
    """Every query with every key, then every weight with every value."""
    return 2 * query.numel() * key[-2] + 2 * query[:-1].numel() * value[-2] * value[-1]


def attention_backward_flops(gradient, query, key, value, *args, **kwargs) -> int:
    """Five products, since the scores are computed again."""
    return attention_flops(query, key, value) * 5 // 2


# FlopCounterMode itself knows attention on a GPU only, and no fewer heads of keys than of queries.
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}{direction}"): formula
    for name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    for direction, formula in (("", attention_flops), ("_backward", attention_backward_flops))
}


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, convolutions and attention of what really runs, causal attention in full."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)
