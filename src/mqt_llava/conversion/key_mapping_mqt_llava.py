"""Names of the original MQT-LLaVA's query transformer for those of `MQTLlavaResampler`."""

import torch

from .key_mapping_llava import Sources, attention_sources


RESAMPLER_SOURCES: Sources = {
    "query_positions": ("pos_embed", None),
    "proj.weight": ("proj", torch.t),
    **attention_sources("attn"),
}
