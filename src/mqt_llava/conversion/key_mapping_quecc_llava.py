"""
Names of the original QueCC for those of `QueCCLlavaResampler`.

The original puts its compressor in front of LLaVA's projector, as the first module of one `nn.Sequential`.
"""

from .key_mapping_llava import Sources, attention_sources


RESAMPLER_SOURCES: Sources = {
    new: (old, None)
    for kind in ("weight", "bias")
    for new, old in {
        f"text_proj.{kind}": f"0.text_projection.0.{kind}",
        f"ln_text.{kind}": f"0.text_projection.1.{kind}",
        **{f"{name}_mlp.{i}.{kind}": f"0.{name}_proj.{i}.{kind}" for name in "qkv" for i in (0, 2, 3)},
        f"q_downsample.{kind}": f"0.q_downsample.{kind}",
        f"proj.0.{kind}": f"1.{kind}",
        f"proj.2.{kind}": f"3.{kind}",
    }.items()
} | attention_sources("0.clip_attn")
