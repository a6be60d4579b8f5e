"""
A start that is not random: before the decoder is run at all, a new query transformer learns to give what the LLaVA's
projector makes of the image, averaged over a cell of it for each query.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.processing_compressed_llava import load_rgb
from ..models.processing_mqt_llava import MQTLlavaProcessor
from .collator import blank_image
from .nested_readers import NestedReaders
from .query_cells import pooling_weights
from .records import read_record
from .teachers import SharedTeacher, check_is_llava


# Of the error of what is read of other cells, small so that what the decoder reads of all M tokens is kept.
NESTED_WEIGHT = 0.3


def fit_arguments(
    args: TrainingArguments, *, max_steps: int, learning_rate: float, batch_size: int
) -> TrainingArguments:
    """
    Of stage 0 in front of a training: as the training's own, and logged to `fit` in its folder.

    Args:
        args: Of the training.
        max_steps, learning_rate, batch_size: Of stage 0; the batch of each device.
    """
    shared = ("seed", "bf16", "use_cpu", "report_to", "disable_tqdm", "dataloader_num_workers")
    return TrainingArguments(
        str(Path(str(args.output_dir)) / "fit"),
        max_steps=max_steps,
        learning_rate=learning_rate,
        per_device_train_batch_size=batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=max_steps // 10,
        logging_steps=max(1, max_steps // 20),
        save_strategy="no",
        **{name: getattr(args, name) for name in shared},
    )


class ImageCollator:
    """
    The images of conversations, as `pixel_values`, and whether there are any, `has_images`: for text alone a blank one
    stands in, since every process must make its pass.

    Args:
        processor: Of the model.
    """

    def __init__(self, processor: MQTLlavaProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        images = [image for row in rows for image in read_record(row).images]
        if not images:
            return {**blank_image(self.processor), "has_images": torch.tensor(False)}
        images = [load_rgb(image, number) for number, image in enumerate(images)]
        pixel_values = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values, "has_images": torch.tensor(True)}


class ProjectorFit(nn.Module):
    """
    The query transformer with its loss: the mean squared error of its tokens, as a share of the variance of the
    projector's tokens over all patches of the batch.

    Args:
        model: Whose query transformer learns.
        llava: Whose projector gives the targets, from the patches of the model's own vision tower.
        processor: Of the model.
        order: Of the cells, a name in [`ORDERS`].
        levels: As in [`ProjectorFitTrainer`].
    """

    def __init__(
        self,
        model: MQTLlavaForConditionalGeneration,
        llava: LlavaForConditionalGeneration,
        processor: MQTLlavaProcessor,
        order: str,
        levels: Sequence[int],
    ):
        super().__init__()
        self.resampler = model.model.resampler.requires_grad_(True)
        # No submodules: what is not trained is not saved.
        self.teacher = SharedTeacher(llava, model)
        self.num_patches = self.teacher.num_visual_tokens(blank_image(processor)["pixel_values"])
        pooling = pooling_weights(order, len(self.resampler.query), math.isqrt(self.num_patches))
        self.register_buffer("pooling", pooling, persistent=False)
        width, num_queries = self.resampler.proj.out_features, len(self.resampler.query)
        self.readers = NestedReaders(num_queries, width, levels) if levels else None

    @torch.no_grad()
    def place_queries(self) -> None:
        """Moves each query from its place in the raster to the middle of its cell."""
        query = self.resampler.query
        centres = self.pooling.to(query) @ self.resampler.patch_positions(self.num_patches)
        query += centres - self.resampler.query_positions.to(query)

    def forward(self, pixel_values: torch.Tensor, has_images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            _, (patches,) = self.teacher.base.model.encode_patches(pixel_values)
            tokens = self.teacher.projector(patches).float()
        visual_tokens = self.resampler(patches)
        with torch.autocast(tokens.device.type, enabled=False):  # which would round the sums
            visual_tokens, cells = visual_tokens.float(), self.pooling @ tokens
            error = (visual_tokens - cells).square().mean()
            if self.readers is not None:
                error = error + NESTED_WEIGHT * self.readers(visual_tokens, cells)
            variance = (tokens - tokens.mean((0, 1))).square().mean()
        return {"loss": error / variance * has_images}


class ProjectorFitTrainer(Trainer):
    """
    Fits the query transformer of a model that was made of a LLaVA, in place, and nothing else: a stage 0, minutes
    even at 7B, since the decoder is not run. `loss` in its logs is the mean squared error of the visual tokens, as a
    share of the variance of the projector's tokens. `train` begins by moving the queries to their cells.

    Args:
        model: From `from_llava`.
        args, **kwargs: As in [`~transformers.Trainer`].
        teacher: The LLaVA.
        processor: Of the model.
        order: What the first m of M queries show at the start: `"raster"`, equal cells row by row, in which the
            decoder has read the LLaVA's patches, or `"coarse_to_fine"`, the whole image and ever smaller cells of it.
        levels: Numbers of tokens below M, such as M / 4 and M / 2, whose tokens are also to hold the cells of all
            others, in [`NestedReaders`]; 0.3 times their mean squared error is added to the loss. They compare the
            images of a device's batch, so it must hold two or more.

    Raises:
        TypeError: The model is no MQT-LLaVA, the teacher no LLaVA, or a level no integer.
        ValueError: The projector reads other patches than the model's vision tower gives, there is no such order, a
            level is not below M or has batches of one, or the training is to be sharded.
    """

    model: Any  # a [`ProjectorFit`]
    args: TrainingArguments

    def __init__(
        self,
        model: MQTLlavaForConditionalGeneration,
        args: TrainingArguments,
        *,
        teacher: LlavaForConditionalGeneration,
        processor: MQTLlavaProcessor,
        order: str = "raster",
        levels: Sequence[int] = (),
        **kwargs: Any,
    ):
        if not isinstance(model, MQTLlavaForConditionalGeneration):
            raise TypeError(f"`model` is a {type(model).__name__}, but must be an MQTLlavaForConditionalGeneration.")
        check_is_llava(teacher)
        if levels and args.per_device_train_batch_size < 2:
            raise ValueError(
                "`per_device_train_batch_size` is 1, but must be at least 2 with `levels`: they compare its images."
            )
        args.remove_unused_columns = False  # the collator reads them
        fit = ProjectorFit(model, teacher, processor, order, levels)
        super().__init__(fit, args, data_collator=ImageCollator(processor), **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Stage 0 is to be sharded by FSDP or DeepSpeed, but would leave the query transformer in pieces. It "
                "is small: run it with DDP or in one process."
            )
        for module in (model.model.vision_tower, fit.teacher.projector):
            module.eval().to(self.args.device)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`]."""
        if not resume_from_checkpoint:
            self.model.place_queries()
        return super().train(resume_from_checkpoint, *args, **kwargs)
