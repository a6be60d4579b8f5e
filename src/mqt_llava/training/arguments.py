"""What the recipes are told, in YAML files or as flags."""

import sys
from dataclasses import dataclass, field
from typing import Any

from .query_cells import ORDERS


@dataclass
class LoadingArguments:
    """How any model is loaded, and what a new query transformer is like."""

    max_visual_tokens: int = field(default=256, metadata={"help": "M of a new query transformer, a square number."})
    resampler_num_attention_heads: int | None = field(
        default=None, metadata={"help": "Of a new compressor; by default 16 (mqt) or 8 (quecc)."}
    )
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, bfloat16, ..."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, flash_attention_2, eager, ..."})


@dataclass
class ElasticArguments(LoadingArguments):
    """A LLaVA that is made elastic, and stage 0, which fits the new query transformer to its projector."""

    llava_name_or_path: str = field(default="llava-hf/llava-1.5-7b-hf", metadata={"help": "The LLaVA."})
    fit_order: str = field(
        default="raster", metadata={"help": "What the first queries show: raster or coarse_to_fine."}
    )
    fit_levels: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of visual tokens below M that stage 0 makes hold the whole image, such as M / 4."},
    )
    fit_steps: int = field(default=1000, metadata={"help": "Steps of stage 0; with 0 the queries start at random."})
    fit_learning_rate: float = field(default=1e-3, metadata={"help": "Of stage 0."})
    fit_batch_size: int = field(default=64, metadata={"help": "Conversations per device and step in stage 0."})

    def __post_init__(self) -> None:
        if self.fit_steps < 0:
            raise ValueError(f"`fit_steps` is {self.fit_steps}, but must be 0 or more.")
        if self.fit_order not in ORDERS:
            raise ValueError(f"`fit_order` is {self.fit_order!r}, but must be one of {', '.join(ORDERS)}.")
        # What comes from a file may be no list.
        levels = self.fit_levels if isinstance(self.fit_levels, list) else [None]
        if not all(isinstance(level, int) and 0 < level < self.max_visual_tokens for level in levels):
            raise ValueError(
                f"`fit_levels` is {self.fit_levels!r}, but must be a list of numbers of visual tokens below "
                f"`max_visual_tokens`, which is {self.max_visual_tokens}."
            )


@dataclass
class ModelArguments(LoadingArguments):
    """Either a checkpoint of this package, or a vision tower and a decoder to put a new compressor between."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint of this package."})
    vision_tower: str | None = field(default=None, metadata={"help": "A vision tower: CLIP, SigLIP, DINOv2, ..."})
    language_model: str | None = field(default=None, metadata={"help": "A causal language model."})
    trained_parts_from: str | None = field(
        default=None, metadata={"help": "A run of stage 1, whose trained_parts.safetensors is loaded on top."}
    )
    compressor: str = field(
        default="mqt", metadata={"help": "Of a new model: the query transformer (mqt) or QueCC (quecc)."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "A LLaVA to distil from, held beside the model, for `distillation: llava`."}
    )
    kernel_size: int = field(default=6, metadata={"help": "Of a new QueCC: side of its windows of patches."})
    vision_context_layers: list[int] = field(
        default_factory=lambda: [12, 16, 22, 23], metadata={"help": "Of a new QueCC: layers for keys and values."}
    )
    vision_feature_layer: int = field(default=-2, metadata={"help": "Of a new model: the hidden state to compress."})
    pad_to_square: bool = field(default=True, metadata={"help": "Whether images are padded rather than cropped."})

    def __post_init__(self) -> None:
        # `choices` of a parser are not held against what comes from a file.
        if self.compressor not in ("mqt", "quecc"):
            raise ValueError(f"`compressor` is {self.compressor!r}, but must be 'mqt' or 'quecc'.")


@dataclass
class DataArguments:
    """The conversations, and how many visual tokens they are learned at."""

    data_path: str | None = field(default=None, metadata={"help": "A JSON (or JSON lines) file in LLaVA's format."})
    image_folder: str | None = field(default=None, metadata={"help": "Where its image paths start; its own folder."})
    dataset_name: str | None = field(default=None, metadata={"help": "Or a dataset with `messages` and `images`."})
    dataset_split: str = field(default="train", metadata={"help": "Its split."})
    max_bad_share: float = field(default=0.01, metadata={"help": "Share of unusable records at which to give up."})
    chat_template: str | None = field(
        default=None, metadata={"help": "A Jinja file that writes the conversations; the processor's own by default."}
    )
    max_length: int = field(default=2048, metadata={"help": "Tokens of a conversation, visual tokens included."})
    budget: str = field(
        default="UniformBudget(2, 256, step=2)",
        metadata={
            "help": "How m is drawn for a batch of MQT-LLaVA; several samplers learn several m for one encoding."
        },
    )


def parse_arguments(*classes: Any, argv: list[str] | None = None) -> tuple:
    """
    One instance of each dataclass from the command line, read by TRL's `TrlParser`: flags go before a YAML file, which
    is named by `--config` or stands first.

    Raises:
        ValueError: A flag or a name in the file is unknown, or the file is no mapping.
    """
    try:
        from trl import TrlParser
    except ImportError as error:
        raise ImportError('Reading a recipe needs TRL: `pip install "mqt_llava[train]"`.') from error
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv.insert(0, "--config")
    return TrlParser(classes).parse_args_and_config(argv)
