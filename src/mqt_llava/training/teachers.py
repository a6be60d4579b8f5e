"""
Who a model is distilled from: the LLaVA that it was made of, whose decoder it shares, or a LLaVA of its own weights.

A teacher gives the logits of the answer tokens, in evaluation mode and without gradients. What is `held` of it beside
the model is no part of the model, so that nothing of it is saved.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.modeling_compressed_llava import NEVER, CompressedLlavaPreTrainedModel
from .collator import BudgetCollator
from .distillation import answer_columns, answer_logits
from .parts import part_of
from .question_collator import QuestionCollator


class SharedTeacher:
    """
    The LLaVA that a model was made of, without a copy of what they share.

    LLaVA's projector makes its visual tokens of the patches that the model's vision tower has just given, and the
    model's own decoder reads them, with PEFT's adapters off. The decoder is called through the model, so that what
    wraps it (DDP, FSDP) sees an ordinary call; text alone is read without an image.

    Args:
        llava: The LLaVA.
        student: The model, or PEFT's wrapper of it, whose decoder is LLaVA's.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, student: Any):
        self.llava: Any = llava
        self.student, self.base = student, base_of(student)
        self.held = self.projector = llava.model.multi_modal_projector
        self.patches: Any = None  # of the images of the last call that was watched

    def num_visual_tokens(self, pixel_values: torch.Tensor) -> int:
        """
        Of an image, `(1, channels, height, width)`. The projector takes on the vision tower's device and dtype, and so
        do the layers of LLaVA's tower that the model does not have.

        Raises:
            ValueError: The projector reads other patches than the model's vision tower gives.
        """
        config, own, tower = self.llava.config, self.base.config, self.base.model.vision_tower
        pixel_values = pixel_values.to(tower.device, tower.dtype)
        for module in (self.projector, self.llava.model.vision_tower):
            module.to(tower.device, tower.dtype)
        layer = config.vision_feature_layer
        fits = isinstance(layer, int) or len(layer) == 1
        fits = fits and config.vision_config.hidden_size == own.vision_config.hidden_size
        if fits:
            # Which layer and which patches a projector reads follows from two configurations and from what is left of
            # a tower that several models share. What it makes of an image says whether it all comes out the same.
            with torch.no_grad(), evaluating(self.base), evaluating(self.llava):
                _, (patches, *_) = self.base.model.encode_patches(pixel_values)
                tokens = self.projector(patches)[0]
                expected = self.llava.get_image_features(pixel_values, return_dict=True).pooler_output[0]
            fits = tokens.shape == expected.shape and bool((tokens - expected).norm() <= 1e-2 * expected.norm())
        if not fits:
            raise ValueError(
                f"The projector of `teacher` is for other features ({_features(config)}) than the model's vision "
                f"tower gives ({_features(own)}). Make the model of this LLaVA, with its features."
            )
        return len(tokens)

    @contextmanager
    def watch_images(self) -> Iterator[None]:
        """While the model encodes images, notes their patches, so that they are encoded once for both."""

        def note(module: nn.Module, args: tuple) -> None:
            self.patches = args[0].detach()

        hook = self.base.model.resampler.register_forward_pre_hook(note)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def answer_logits(self, model: nn.Module, prompts: dict, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What LLaVA says at each answer token.

        Args:
            model: The model as it is called in training, wrapped.
            prompts: `input_ids`, `attention_mask` and `labels` `(batch, length)`, with as many placeholders as LLaVA
                has visual tokens; none for text alone.
            pixel_values: Not needed: the images are those of the last call that was watched.

        Returns:
            `(answer tokens, vocabulary)`.
        """
        encoded, labels = None, prompts["labels"]
        if (prompts["input_ids"] == self.base.config.image_token_id).any():
            weight = next(self.projector.parameters())
            tokens: Any = list(self.projector(self.patches.to(weight.dtype)))
            encoded = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        self.patches, columns = None, answer_columns(labels)
        with adapters_off(self.student), evaluating(self.student):
            outputs = model(
                input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"], mm_encoder_outputs=encoded,
                logits_to_keep=columns, use_cache=False,
            )  # fmt: skip
        return answer_logits(outputs.logits, labels, columns)


class SeparateTeacher:
    """
    A LLaVA with weights of its own, which encodes the images itself. Every process holds it whole.

    Args:
        llava: The LLaVA, with the vocabulary and the pixels of the model.
        student: The model, or PEFT's wrapper of it.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, student: Any):
        self.llava: Any = llava
        self.held = llava
        theirs: Any = llava.config
        own = base_of(student).config
        self.image_token_id = own.image_token_id
        for name, value, expected in (
            ("text_config.vocab_size", theirs.text_config.vocab_size, own.text_config.vocab_size),
            ("image_token_id", theirs.image_token_id, own.image_token_id),
        ):
            if value != expected:
                raise ValueError(
                    f"`teacher` has `{name}` {value}, but the model {expected}: they must read the same tokens."
                )

    def num_visual_tokens(self, pixel_values: torch.Tensor) -> int:
        """
        Of an image, `(1, channels, height, width)`.

        Raises:
            ValueError: It is for images of another size.
        """
        side = self.llava.config.vision_config.image_size
        if side != pixel_values.shape[-1]:
            raise ValueError(
                f"`teacher` sees images of {side} pixels, but the processor makes them {pixel_values.shape[-1]} wide."
            )
        pixel_values = pixel_values.to(self.llava.device, self.llava.dtype)
        with torch.no_grad():
            return len(self.llava.get_image_features(pixel_values, return_dict=True).pooler_output[0])

    def watch_images(self) -> AbstractContextManager:
        return nullcontext()

    @torch.no_grad()
    def answer_logits(self, model: nn.Module, prompts: dict, pixel_values: torch.Tensor) -> torch.Tensor:
        """As of a [`SharedTeacher`], from the images themselves."""
        labels = prompts["labels"]
        columns, images = answer_columns(labels), {}
        if (prompts["input_ids"] == self.image_token_id).any():
            images = {"pixel_values": pixel_values.to(self.llava.dtype)}
        with evaluating(self.llava):
            logits = self.llava(
                input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"], **images,
                logits_to_keep=columns, use_cache=False,
            ).logits  # fmt: skip
        # Which the model never predicts.
        image_token = torch.full((1,), self.image_token_id, device=logits.device)
        return answer_logits(logits.index_fill(-1, image_token, NEVER), labels, columns)


def find_teacher(
    distillation: str | None, llava: Any, student: Any, collator: BudgetCollator
) -> SharedTeacher | SeparateTeacher | None:
    """
    The teacher that a training is asked for, and tells the collator how long its prompts are.

    Args:
        distillation: `"llava"`, `"self"` or None.
        llava: The LLaVA to learn from, for `"llava"` alone.
        student: The model, or PEFT's wrapper of it, with its parts frozen already.
        collator: Of the training.

    Returns:
        None where there is no other model to learn from.

    Raises:
        TypeError, ValueError: There is no teacher, one too many, one that would change while it teaches, or one that
            does not read the same tokens and images.
    """
    collator.teacher_num_visual_tokens = None
    if distillation == "self":
        _check_budgets(collator)
    if distillation != "llava":
        if llava is not None:
            raise ValueError(f"`teacher` is given, but `distillation` is {distillation!r}: it is for 'llava' alone.")
        return None
    check_is_llava(llava)
    base = base_of(student)
    is_shared = llava.model.language_model is base.model.language_model
    _check_nothing_changes(llava, student, is_shared)
    teacher = (SharedTeacher if is_shared else SeparateTeacher)(llava, student)
    collator.teacher_num_visual_tokens = teacher.num_visual_tokens(collator.blank_image["pixel_values"])
    return teacher


def check_is_llava(teacher: Any) -> None:
    """
    Raises:
        TypeError: It has no projector: it is no LLaVA, or one that was made elastic.
    """
    if not isinstance(teacher, LlavaForConditionalGeneration) or isinstance(teacher, CompressedLlavaPreTrainedModel):
        raise TypeError(
            f"`teacher` is a {type(teacher).__name__}, but must be the LlavaForConditionalGeneration to learn from."
        )


def _check_budgets(collator: BudgetCollator) -> None:
    if isinstance(collator, QuestionCollator):
        raise ValueError("`distillation` is 'self', but a QueCC-LLaVA has one number of visual tokens: use 'llava'.")
    if len(collator.samplers) < 2:
        raise ValueError(
            "`distillation` is 'self': the smaller numbers of visual tokens of a batch learn from its largest, but "
            "`budget` is a single sampler. Give several, such as 'FixedBudget(1), UniformBudget(2, 255), "
            "FixedBudget(256)'."
        )


def _check_nothing_changes(llava: LlavaForConditionalGeneration, student: Any, is_shared: bool) -> None:
    taught = set(llava.parameters())
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    # What PEFT freezes here is not there when a teacher reads through the model.
    with adapters_off(student) if is_shared else nullcontext():
        changing = {
            part_of(name)
            for name, parameter in student.named_parameters()
            if name in trained and parameter.requires_grad and parameter in taught
        }
    if is_shared:  # its patches are those of the model's own pass, adapters and all
        changing |= {part_of(name) for name in trained} & {"vision_tower"}
    if changing:
        raise ValueError(
            f"`teacher` shares its {' and '.join(sorted(changing))} with the model, which trains it: it would change "
            "while it teaches. Pass a LLaVA with weights of its own, `teacher=LlavaForConditionalGeneration"
            ".from_pretrained(...)`, or train the language model through LoRA adapters, or leave the part out of "
            "`trained_parts`."
        )


def _features(config: Any) -> str:
    names = ("vision_feature_layer", "vision_feature_select_strategy")
    width = f"width {config.vision_config.hidden_size}"
    return ", ".join([*(f"`{name}` {getattr(config, name)!r}" for name in names), width])


def base_of(student: Any) -> Any:
    """The model itself, of one that PEFT may have wrapped."""
    return student if isinstance(student, PreTrainedModel) else student.get_base_model()


def adapters_off(student: Any) -> AbstractContextManager:
    return nullcontext() if isinstance(student, PreTrainedModel) else student.disable_adapter()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """
    Without dropout and gradient checkpointing for a while. Linear layers know neither, and stay as they are: on a CPU,
    bitsandbytes' put their weights into another form when they are called in evaluation mode, which training cannot
    go on with.
    """
    modules = [module for module in model.modules() if module.training and not isinstance(module, nn.Linear)]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
