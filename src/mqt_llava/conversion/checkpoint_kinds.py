"""The kinds of original checkpoints, how to tell one from the other, and the command that converts each."""

from collections.abc import Iterable
from typing import NamedTuple

from .checkpoint_reader import CheckpointReader
from .conversion_error import ConversionError


class CheckpointKind(NamedTuple):
    """
    Args:
        name: What people call it.
        script: The command that converts it.
        module: The compressor, as the original model calls it.
        landmark: A tensor of the compressor that every checkpoint of this kind has, and none of another kind.
        stage_1_file: Where training saves the compressor by itself after stage 1.
    """

    name: str
    script: str
    module: str
    landmark: str
    stage_1_file: str

    @property
    def prefix(self) -> str:
        """What stands before the names of the compressor's tensors in a whole checkpoint."""
        return f"model.{self.module}."

    def prefix_in(self, names: Iterable[str]) -> str | None:
        """What stands before them in any file, since trainers wrap the model in different ways; `None` without any."""
        end = f".{self.module}.{self.landmark}"
        return next((name.removesuffix(self.landmark) for name in names if f".{name}".endswith(end)), None)


MQT_LLAVA = CheckpointKind(
    "MQT-LLaVA", "convert_mqt_llava_weights_to_hf.py", "query_abstractor", "query", "query_abstractor.bin"
)
QUECC_LLAVA = CheckpointKind(
    "QueCC-LLaVA", "convert_quecc_weights_to_hf.py", "mm_projector", "0.clip_attn.in_proj_weight", "mm_projector.bin"
)
KINDS = (MQT_LLAVA, QUECC_LLAVA)


def refuse_other_kinds(checkpoint: CheckpointReader, kind: CheckpointKind) -> None:
    """
    Raises:
        ConversionError: The checkpoint is of another kind than `kind`. Names the command for it.
    """
    names = checkpoint.keys()
    if kind.prefix_in(names) is not None:
        return
    for other in KINDS:
        if other.prefix_in(names) is not None:
            raise ConversionError(
                f"{checkpoint.path} is a checkpoint of {other.name}, not of {kind.name}. Use "
                f"conversion/{other.script}."
            )
