"""
The models of `compared_models.py` as checkpoints that vLLM serves, and the FLOPs of requests to them.

Weights are random. Both have the tokenizer and the chat template of the embedded checkpoint, with names for the other
tokens of the decoder: what it answers is no text, but costs what text would. (vLLM 0.32 dies of a request for the
log-probabilities of a token that has no name.) MQT-LLaVA's calibrated budget has a
confidence that random weights do not reach, so that "auto" climbs to M: the worst case.
"""

from dataclasses import replace
from pathlib import Path

import torch
from compared_models import MAX_TOKENS, SIZES, build_models
from harness import REPOSITORY, SEED
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaConfig, LlavaProcessor

from mqt_llava import MQTLlavaConfig, MQTLlavaProcessor
from mqt_llava.planning import request_cost
from mqt_llava.planning.decoders import decoder


LEVELS, PROBED_TOKENS = (16, 64, MAX_TOKENS), 3
BUDGET = {"levels": list(LEVELS), "confidence": 1.0, "margin": 0.0, "num_probed_tokens": PROBED_TOKENS}


def save_models(folder: Path, size: str, dtype: str) -> None:
    """Writes checkpoints `mqt` and `llava` below a folder."""
    tiny = AutoProcessor.from_pretrained(REPOSITORY / "model_cards" / "mqt-llava-tiny")
    tokenizer, template = tiny.tokenizer, tiny.chat_template
    unnamed = range(len(tokenizer), SIZES[size].vocabulary)
    tokenizer.add_tokens([f"<token {token_id}>" for token_id in unnamed])
    torch.manual_seed(SEED)
    shape = replace(SIZES[size], dtype=getattr(torch, dtype))
    mqt, llava = build_models(shape, "cpu", tokenizer.convert_tokens_to_ids("<image>"))
    mqt.generation_config.adaptive_budget = BUDGET
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    llava_processor = LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    mqt_processor = MQTLlavaProcessor(pixels, tokenizer, max_visual_tokens=MAX_TOKENS, chat_template=template)
    # LLaVA first: saving ours tells their common parts of its code.
    llava.save_pretrained(folder / "llava", state_dict=published_names(llava.state_dict()))
    llava_processor.save_pretrained(folder / "llava")
    mqt.save_pretrained(folder / "mqt")
    mqt_processor.save_pretrained(folder / "mqt")


def published_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LLaVA's weights as the published checkpoints, and so vLLM, call them."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    return {name if new in name else name.replace(old, new): weight for name, weight in weights.items()}


class Costs:
    """FLOPs of requests to the checkpoints of [`save_models`]."""

    def __init__(self, folder: Path):
        self.mqt = MQTLlavaConfig.from_pretrained(folder / "mqt")
        # vLLM builds LLaVA's vision tower up to its feature layer only, as this package does; `planning` counts what
        # transformers runs, all layers.
        self.llava = LlavaConfig.from_pretrained(folder / "llava")
        self.llava.vision_config.num_hidden_layers -= 1
        self.llava.vision_feature_layer = -1

    def image(self, m: int | None) -> int:
        """Of an image that is encoded; `m` is `None` for LLaVA."""
        flops = self.request(m, 1, 1).flops
        return flops.vision_tower + flops.compressor

    def answer(self, m: int | None, text_tokens: int, new_tokens: int, cached_tokens: int = 0) -> int:
        """Of a prompt, but for the tokens at its beginning that vLLM has in its KV cache, and its answer."""
        flops = self.request(m, text_tokens, new_tokens).flops
        text = decoder(self.mqt.text_config, self.mqt.tie_word_embeddings)
        return flops.prefill + flops.decode - text.read_flops(cached_tokens)

    def auto(self, text_tokens: int, new_tokens: int, cached_tokens: int = 0) -> int:
        """
        The probes of a request that climbs to M, and its answer. Nothing of a probe is taken to be cached: it is
        shorter than a block of the KV cache on a CPU, or little longer.
        """
        probes = sum(self.answer(level, text_tokens, PROBED_TOKENS) for level in LEVELS[:-1])
        return probes + self.answer(LEVELS[-1], text_tokens, new_tokens, cached_tokens)

    def request(self, m: int | None, text_tokens: int, new_tokens: int):
        config = self.llava if m is None else self.mqt
        return request_cost(config, text_tokens=text_tokens, new_tokens=new_tokens, num_visual_tokens=m)
