"""
A start that is not random: before the decoder is run at all, a new query transformer learns to give what the LLaVA's
projector makes of the image, averaged over a cell of it for each query.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.processing_mqt_llava import MQTLlavaProcessor
from .collator import blank_image
from .query_cells import pooling_weights
from .records import read_record
from .teachers import SharedTeacher, check_is_llava


class ImageCollator:
    """
    The images of conversations, as `pixel_values`; a blank one where there are none.

    Args:
        processor: Of the model.
    """

    def __init__(self, processor: MQTLlavaProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images = [image for row in rows for image in read_record(row).images]
        if not images:
            return blank_image(self.processor)
        return {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}


class ProjectorFit(nn.Module):
    """
    The query transformer with its loss: the share of the targets' variance that it leaves unexplained, 1 for a guess
    that is always their mean.

    Args:
        model: Whose query transformer learns. Its queries are moved to the cells that they are to stand for.
        llava: Whose projector gives the targets, from the patches of the model's own vision tower.
        processor: Of the model.
        order: Of the cells, a name in [`ORDERS`].
    """

    def __init__(
        self,
        model: MQTLlavaForConditionalGeneration,
        llava: LlavaForConditionalGeneration,
        processor: MQTLlavaProcessor,
        order: str,
    ):
        super().__init__()
        self.resampler = model.model.resampler
        # No submodules: what is not trained is not saved.
        self.teacher = SharedTeacher(llava, model)
        num_patches = self.teacher.num_visual_tokens(blank_image(processor)["pixel_values"])
        query = self.resampler.query
        self.pooling = pooling_weights(order, len(query), math.isqrt(num_patches))
        with torch.no_grad():
            centres = self.pooling.to(query) @ self.resampler.patch_positions(num_patches)
            query += centres - self.resampler.query_positions.to(query)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            _, (patches,) = self.teacher.base.model.encode_patches(pixel_values)
            tokens = self.teacher.projector(patches).float()
            targets = self.pooling.to(tokens) @ tokens
        error = (self.resampler(patches).float() - targets).square().sum()
        variance = (targets - targets.mean((0, 1))).square().sum()
        return {"loss": error / variance.clamp(min=torch.finfo(variance.dtype).tiny)}


class ProjectorFitTrainer(Trainer):
    """
    Fits the query transformer of a model that was made of a LLaVA, in place, and nothing else: a stage 0, minutes
    even at 7B, since the decoder is not run. `loss` in its logs is the share of the targets' variance that is left.

    Args:
        model: From `from_llava`.
        args, **kwargs: As in [`~transformers.Trainer`].
        teacher: The LLaVA.
        processor: Of the model.
        order: What the first m of M queries show at the start: `"coarse_to_fine"`, the whole image and ever smaller
            cells of it, or `"raster"`, equal cells row by row.

    Raises:
        TypeError: The model is no MQT-LLaVA, or the teacher no LLaVA.
        ValueError: The projector reads other patches than the model's vision tower gives, or there is no such order.
    """

    args: TrainingArguments

    def __init__(
        self,
        model: MQTLlavaForConditionalGeneration,
        args: TrainingArguments,
        *,
        teacher: LlavaForConditionalGeneration,
        processor: MQTLlavaProcessor,
        order: str = "coarse_to_fine",
        **kwargs: Any,
    ):
        if not isinstance(model, MQTLlavaForConditionalGeneration):
            raise TypeError(f"`model` is a {type(model).__name__}, but must be an MQTLlavaForConditionalGeneration.")
        check_is_llava(teacher)
        model.requires_grad_(False)
        model.model.resampler.requires_grad_(True)
        args.remove_unused_columns = False  # the collator reads them
        fit = ProjectorFit(model, teacher, processor, order)
        super().__init__(fit, args, data_collator=ImageCollator(processor), **kwargs)
        for module in (model.model.vision_tower, fit.teacher.projector):
            module.eval().to(self.args.device)
