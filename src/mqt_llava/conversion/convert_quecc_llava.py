"""
Converts an original QueCC checkpoint into one that `QueCCLlavaForConditionalGeneration` loads.

    python conversion/convert_quecc_weights_to_hf.py \\
        --input checkpoints/llava-v1.5-7b-quecc --vision-tower openai/clip-vit-large-patch14-336 \\
        --output quecc-llava-7b --check

The input is a folder as the original code saves it, or a Hub id of one. The vision tower is taken from the checkpoint
if that holds one; its config and preprocessing, and otherwise its weights, come from `--vision-tower` or from where
the original config says. A stage-1 checkpoint, which holds only `mm_projector.bin` and its config, needs the language
model that it was trained with:

    python conversion/convert_quecc_weights_to_hf.py \\
        --input checkpoints/llava-v1.5-7b-quecc-pretrain --language-model lmsys/vicuna-7b-v1.5 --output quecc-stage-1

Tensors go from file to file one at a time, so that memory does not grow with the model. The output folder appears when
it is finished, or not at all.

Without the repository, call `python -m mqt_llava.conversion.convert_quecc_llava` instead of the script.
"""

from .. import QueCCLlavaForConditionalGeneration
from . import command_line
from .checkpoint_kinds import QUECC_LLAVA
from .configs_quecc_llava import SETTINGS, quecc_llava_config, quecc_llava_processor
from .conversion_steps import Conversion
from .key_mapping import Sources, attention_sources
from .model_card import ConversionTexts


# What the original calls the tensors of its compressor and of LLaVA's projector behind it, one `nn.Sequential`.
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

CONVERSION = Conversion(
    kind=QUECC_LLAVA,
    model_class=QueCCLlavaForConditionalGeneration,
    settings=SETTINGS,
    sources=RESAMPLER_SOURCES,
    config=quecc_llava_config,
    processor=quecc_llava_processor,
    card=ConversionTexts(
        QueCCLlavaForConditionalGeneration.card_texts,
        differences="""\
the vision tower ends at the last layer whose output is
used, the compressor's joint input projection is split into three, and""",
    ),
)


def main(argv: list[str] | None = None) -> None:
    command_line.main(CONVERSION, __doc__, argv)


if __name__ == "__main__":
    main()
