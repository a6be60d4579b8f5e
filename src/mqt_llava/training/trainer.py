"""
transformers' `Trainer` for this package's models: which parts are trained how fast, batches of one modality, several
numbers of visual tokens for one encoding, distillation, the loss by that number, and checkpoints that hold what was
trained.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.trainer_utils import TrainOutput

from .checkpoints import (
    check_same_model,
    last_complete_checkpoint,
    load_trained_parts,
    load_weights,
    save_trained_parts,
)
from .collator import BudgetCollator
from .dataset import ConversationDataset
from .distillation import IGNORED, answer_logits, divergence
from .grouping import ModalityLengthSampler
from .model_card import write_training_card
from .parts import parameter_groups, train_parts
from .teachers import find_teacher


KINDS = ("loss", "kl")  # of which the logs hold means


@dataclass
class MQTLlavaTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`], with these of its own:

    Args:
        trained_parts: Of `"resampler"` (the query transformer), `"language_model"` and `"vision_tower"`; the others
            are frozen. Not looked at where the model is PEFT's.
        resampler_learning_rate, language_model_learning_rate, vision_tower_learning_rate:
            Of one part, where it is not `learning_rate`.
        group_by_modality_length: Whether batches are all images or all text, and of like length.
        distillation: Who the model also learns from: `"llava"`, the trainer's `teacher`; or `"self"`, the model itself
            at the largest of several numbers of visual tokens, from which the others learn. By default nobody.
        distillation_temperature: T. The loss is KL(teacher || student) of distributions at this temperature, times
            T^2, a mean over the answer tokens.
        cross_entropy_weight: Of the labels' cross-entropy, which is added to it; 0 leaves it out. With `"self"`, the
            largest number learns from the labels alone, whatever the weight.

    Raises:
        ValueError: `distillation` is unknown, the temperature not positive or the weight negative, or labels are
            smoothed.
    """

    remove_unused_columns: bool = False
    include_num_input_tokens_seen: str = "non_padding"
    trained_parts: list[str] = field(
        default_factory=lambda: ["resampler", "language_model"],
        metadata={"help": "What is trained, of resampler, language_model and vision_tower."},
    )
    resampler_learning_rate: float | None = field(default=None, metadata={"help": "`learning_rate` by default."})
    language_model_learning_rate: float | None = field(default=None, metadata={"help": "`learning_rate` by default."})
    vision_tower_learning_rate: float | None = field(default=None, metadata={"help": "`learning_rate` by default."})
    group_by_modality_length: bool = field(
        default=True, metadata={"help": "Batches of images alone or text alone, of like length."}
    )
    distillation: str | None = field(
        default=None, metadata={"help": "Who the model also learns from: llava (a teacher) or self."}
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Of teacher's and student's distributions."}
    )
    cross_entropy_weight: float = field(default=1.0, metadata={"help": "Of the labels, beside distillation."})

    def __post_init__(self) -> None:
        if self.distillation not in (None, "llava", "self"):
            raise ValueError(f"`distillation` is {self.distillation!r}, but must be 'llava', 'self' or left out.")
        if not (self.distillation_temperature > 0 and math.isfinite(self.distillation_temperature)):
            raise ValueError(
                f"`distillation_temperature` is {self.distillation_temperature}, but must be a positive number."
            )
        if not (self.cross_entropy_weight >= 0 and math.isfinite(self.cross_entropy_weight)):
            raise ValueError(
                f"`cross_entropy_weight` is {self.cross_entropy_weight}, but must be 0 or a positive number."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}, but must be 0: transformers' Trainer "
                "smooths each label with the logits of its own place instead of those before it, for all but causal "
                "language models without images."
            )
        super().__post_init__()


class MQTLlavaTrainer(Trainer):
    """
    Trains an [`MQTLlavaForConditionalGeneration`], or PEFT's wrapper of one.

    A run that trains some parts beside a frozen language model saves those alone, as `trained_parts.safetensors`; see
    [`load_trained_parts`]. The logs hold `loss_m4-7` and the like: the mean loss per answer token, since the last log,
    of the batches at 4 to 7 visual tokens, and `loss_text` of those without an image; with distillation also `kl_m4-7`
    and the like, its share of them.

    Args:
        model, args, data_collator, **kwargs: As in [`~transformers.Trainer`].
        teacher: The LLaVA to learn from, where `args.distillation` is `"llava"`. If its decoder is the model's own,
            that must be frozen or learn through adapters, and is not held twice. It is needed again to resume.

    Raises:
        TypeError, ValueError: The teacher is missing, changes in training, or does not read the same tokens and
            images; see [`find_teacher`].
    """

    model: Any  # a model of this package, or PEFT's wrapper of one, which answers to the same names
    args: MQTLlavaTrainingArguments
    data_collator: BudgetCollator
    processing_class: ProcessorMixin

    def __init__(
        self,
        model: Any,
        args: MQTLlavaTrainingArguments,
        data_collator: BudgetCollator,
        *,
        teacher: LlavaForConditionalGeneration | None = None,
        **kwargs: Any,
    ):
        self.is_peft = not isinstance(model, PreTrainedModel)
        if not self.is_peft:
            train_parts(model, args.trained_parts)
        self.teacher = find_teacher(args.distillation, teacher, model, data_collator)
        kwargs.setdefault("processing_class", data_collator.processor)
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        if self.teacher is not None:
            self._move_model_to_device(self.teacher.held, self.args.device)
        self.add_callback(data_collator.epoch_callback)
        # Sum and number of answer tokens of each kind of loss, by the power of two that m lies above; text comes last.
        self.max_visual_tokens = data_collator.processor.max_visual_tokens
        self.num_bands = self.max_visual_tokens.bit_length()
        self.losses = torch.zeros(len(KINDS), self.num_bands + 1, 2)

    @property
    def saves_parts_alone(self) -> bool:
        return not self.is_peft and "language_model" not in self.args.trained_parts

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As [`~transformers.Trainer.train`]; `True` resumes from the last checkpoint that was written to its end.

        Raises:
            ValueError: The checkpoint, or what `output_dir` holds already, is of another model.
        """
        output_dir = str(self.args.output_dir)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"`output_dir` {output_dir} holds no complete checkpoint to resume from.")
        is_used = (Path(output_dir) / "config.json").exists()
        for folder in (resume_from_checkpoint, output_dir if is_used else None):
            if folder and not self.is_peft:
                check_same_model(folder, self.model.config)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # transformers has it static, and calls it on the instance.
    def get_optimizer_cls_and_kwargs(  # type: ignore[override]
        self, args: Any, model: Any = None
    ) -> tuple[Any, Any]:
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        learning_rates = {
            "resampler": args.resampler_learning_rate,
            "language_model": args.language_model_learning_rate,
            "vision_tower": args.vision_tower_learning_rate,
        }
        decayed = set(self.get_decay_parameter_names(model))
        kwargs.setdefault("params", parameter_groups(model, decayed, args.weight_decay, learning_rates))
        return optimizer_class, kwargs

    def get_train_dataloader(self) -> DataLoader:
        dataloader: Any = super().get_train_dataloader()  # accelerate's
        # Its workers' seeds come from elsewhere than dropout's numbers: with persistent workers, a run that is resumed
        # draws one more.
        dataloader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return dataloader

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not (self.args.group_by_modality_length and isinstance(dataset, ConversationDataset)):
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # Shares the collator's epoch: the loaders' `set_epoch` stops short of a sampler under several processes when
        # batches are skipped after a resume.
        return ModalityLengthSampler(dataset.sizes, batch_size, seed, self.data_collator.epoch)

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        nested, teacher_prompts = inputs.pop("nested", []), inputs.pop("teacher", None)
        pixel_values, target = inputs["pixel_values"], None
        if self.args.distillation is not None and "labels" not in inputs:
            raise ValueError(
                "`labels` is missing from the batch: distillation needs to know which tokens are answers."
            )
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch.clamp(min=1)  # no answer may have fitted into `max_length`
        with nullcontext() if self.teacher is None else self.teacher.watch_images():
            # Of a copy, since labels are taken out for a `compute_loss_func`.
            loss, outputs = super().compute_loss(model, {**inputs}, True, num_items_in_batch)
        if self.teacher is not None:
            target = self.teacher.answer_logits(model, teacher_prompts, pixel_values)
            loss = self._distil(loss, outputs, target, inputs, len(pixel_values), num_items_in_batch)
        elif self.args.distillation == "self":
            target = answer_logits(outputs.logits.detach(), inputs["labels"])
        self._note("loss", inputs, len(pixel_values), loss, num_items_in_batch)
        if nested:
            # The images' tokens come out of the pass at the largest m, and nest: the others take the first.
            tokens: Any = list(outputs.image_hidden_states.split(inputs["visual_token_counts"].tolist()))
            encoded = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
            for prompts in nested:
                prompts = {**prompts, "mm_encoder_outputs": encoded}
                nested_loss, nested_outputs = super().compute_loss(model, {**prompts}, True, num_items_in_batch)
                if target is not None:
                    nested_loss = self._distil(
                        nested_loss, nested_outputs, target, prompts, len(pixel_values), num_items_in_batch
                    )
                self._note("loss", prompts, len(pixel_values), nested_loss, num_items_in_batch)
                loss = loss + nested_loss
            loss = loss / (1 + len(nested))
        return (loss, outputs) if return_outputs else loss

    def _distil(
        self, loss: Any, outputs: Any, target: torch.Tensor, inputs: dict, num_images: int, num_items_in_batch: Any
    ) -> Any:
        """The divergence from the teacher's logits, and with its weight the labels' loss."""
        total = divergence(answer_logits(outputs.logits, inputs["labels"]), target, self.args.distillation_temperature)
        # A mean over the answer tokens, as the model's own loss is one.
        if num_items_in_batch is None:
            distilled = total / max(1, len(target))
        else:
            distilled = total * self._loss_scale / num_items_in_batch
        self._note("kl", inputs, num_images, distilled, num_items_in_batch)
        weight = self.args.cross_entropy_weight
        return distilled + weight * loss if weight else distilled

    @property
    def _loss_scale(self) -> int:
        """What the Trainer multiplies a loss with where it divides by the answer tokens of all processes."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def _note(
        self, kind: str, inputs: dict, num_images: int, loss: Any, num_items_in_batch: torch.Tensor | None
    ) -> None:
        if num_items_in_batch is None or not self.model.training:
            return
        is_placeholder = inputs["input_ids"] == self.model.config.image_token_id
        shows_image = inputs["attention_mask"][is_placeholder].any()
        band = (int(is_placeholder.sum()) // num_images).bit_length() - 1 if shows_image else self.num_bands
        # Undoes the division by the answer tokens of all processes and accumulated steps.
        total = loss.detach() * num_items_in_batch / self._loss_scale
        number = inputs["labels"][:, 1:].ne(IGNORED).sum()
        self.losses[KINDS.index(kind), band] += torch.stack([total, number]).float().cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # of training; every process comes here
            logs |= self._mean_losses() | self._counts()
        super().log(logs, start_time)

    def _mean_losses(self) -> dict[str, float]:
        totals = self.accelerator.reduce(self.losses.to(self.args.device)).flatten(0, 1).tolist()
        self.losses.zero_()
        bands = [(2**band, min(2 ** (band + 1) - 1, self.max_visual_tokens)) for band in range(self.num_bands)]
        ends = [f"m{low}" if low == high else f"m{low}-{high}" for low, high in bands] + ["text"]
        names = [f"{kind}_{end}" for kind in KINDS for end in ends]
        return {name: total / number for name, (total, number) in zip(names, totals, strict=True) if number}

    def _counts(self) -> dict[str, int]:
        """What was passed over and cut so far, in all processes."""
        counts = self.data_collator.event_counts.totals()
        if isinstance(self.train_dataset, ConversationDataset):
            counts |= self.train_dataset.event_counts.totals()
        totals = self.accelerator.reduce(torch.tensor(list(counts.values()), device=self.args.device)).tolist()
        return {
            name: total for name, total in zip(counts, totals) if total and name not in ("records", "conversations")
        }

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]  # by name, as transformers calls it
        """
        As [`~transformers.Trainer.create_model_card`], and says what the model is and how it is asked. A card that
        somebody wrote stays as it is, in `output_dir` and on the Hub.
        """
        if self.is_world_process_zero():
            write_training_card(Path(str(self.args.output_dir)) / "README.md", self, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What follows says that the checkpoint is whole: no process must still be writing its share.
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.is_fsdp_enabled and isinstance(self.model, FSDPModule):
            # FSDP made it a class of its own; a checkpoint carries the code of the module that its class names.
            type(self.model).__module__ = type(self.model).__bases__[-1].__module__
        if not self.saves_parts_alone:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
            state_dict = self.model.state_dict() if state_dict is None else state_dict
            save_trained_parts({name: state_dict[name] for name in state_dict if name in trained}, folder)
            self.model.config.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_peft:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif self.saves_parts_alone:
            load_trained_parts(self.model, resume_from_checkpoint)
        else:
            load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_peft:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
