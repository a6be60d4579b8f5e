"""What lmms-eval finds by the entry point `lmms_eval.models`."""

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


TASKS_FOLDER = Path(__file__).parent / "tasks"
"""Folder of the package's own tasks, for lmms-eval's `--include_path`."""


def manifest() -> "ModelManifest":
    """The model `mqt_llava`, as lmms-eval's registry wants it. Its class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("mqt_llava", chat_class_path="mqt_llava.evaluation.lmms_eval_model.MQTLlava")
