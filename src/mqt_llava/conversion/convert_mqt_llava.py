"""
Converts an original MQT-LLaVA checkpoint into one that `MQTLlavaForConditionalGeneration` loads.

    python conversion/convert_mqt_llava_weights_to_hf.py \\
        --input gordonhu/MQT-LLaVA-7b --vision-tower openai/clip-vit-large-patch14-336 \\
        --output mqt-llava-7b --check

The input is a folder as the original code saves it, or a Hub id of one. The vision tower is taken from the checkpoint
if that holds one; its config and preprocessing, and otherwise its weights, come from `--vision-tower` or from where
the original config says. A stage-1 checkpoint, which holds only `query_abstractor.bin` and its config, needs the
language model that it was trained with:

    python conversion/convert_mqt_llava_weights_to_hf.py \\
        --input checkpoints/mqt-llava-pretrain --language-model lmsys/vicuna-7b-v1.5 --output mqt-llava-stage-1

Tensors go from file to file one at a time, so that memory does not grow with the model. The output folder appears when
it is finished, or not at all.

Without the repository, call `python -m mqt_llava.conversion.convert_mqt_llava` instead of the script.
"""

import torch

from .. import MQTLlavaForConditionalGeneration
from . import command_line
from .checkpoint_kinds import MQT_LLAVA
from .configs_mqt_llava import mqt_llava_config, mqt_llava_processor
from .conversion_steps import Conversion
from .key_mapping import Sources, attention_sources
from .model_card import ConversionTexts


# What the original calls the tensors of its query transformer.
RESAMPLER_SOURCES: Sources = {
    "query_positions": ("pos_embed", None),
    "proj.weight": ("proj", torch.t),
    **attention_sources("attn"),
}

CONVERSION = Conversion(
    kind=MQT_LLAVA,
    model_class=MQTLlavaForConditionalGeneration,
    settings={},
    sources=RESAMPLER_SOURCES,
    config=mqt_llava_config,
    processor=mqt_llava_processor,
    card=ConversionTexts(
        MQTLlavaForConditionalGeneration.card_texts,
        differences="""\
the vision tower ends at the layer whose output is used,
the query transformer's joint input projection is split into three, and""",
    ),
)


def main(argv: list[str] | None = None) -> None:
    command_line.main(CONVERSION, __doc__, argv)


if __name__ == "__main__":
    main()
