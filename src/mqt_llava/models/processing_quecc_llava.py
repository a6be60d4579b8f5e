# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Processor of QueCC-LLaVA: images and text in, and beside them the question that each image is asked."""

import os
import re
from typing import Any

from transformers import BatchFeature, LlavaProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput

from .configuration_compressed_llava import check_integer
from .configuration_quecc_llava import check_fixed_number
from .processing_compressed_llava import TYPED_TOKEN_MARKS, V1_CHAT_TEMPLATE, CompressedLlavaProcessor, split_at_tokens


class QueCCLlavaImagesKwargs(ImagesKwargs, total=False):
    """
    num_visual_tokens (`int`, *optional*):
        No choice, but what MQT-LLaVA's processor takes: any other number than the model's own is refused.
    """

    num_visual_tokens: Any  # checked by `check_fixed_number`, whose error says more than a type check's


class QueCCLlavaProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {}  # asked for by releases before 5.20

    images_kwargs: QueCCLlavaImagesKwargs


class QueCCLlavaProcessor(CompressedLlavaProcessor):
    r"""
    Prepares images and text for a [`QueCCLlavaForConditionalGeneration`].

    Beside the prompts it tokenises the question of each image: the text behind the image, from its first line break up
    to the answer, without the white space around it. So the first question about an image holds for the whole
    conversation, unless a call passes another as `query`.

    Args:
        image_processor: Turns images into `pixel_values`; always run by its PIL backend, whose pixels are the ones
            that the model was trained on.
        tokenizer: A tokenizer that knows the placeholder `<image>`.
        max_visual_tokens (`int`, defaults to 16):
            Visual tokens of an image, the model's `config.num_visual_tokens`. There is no choice of fewer.
        chat_template (`str`, *optional*):
            LLaVA's v1 template by default.
        answer_prefix (`str`, defaults to `"ASSISTANT"`):
            What stands between a question and its answer in the prompts of `chat_template`.

    ```python
    >>> processor = QueCCLlavaProcessor.from_pretrained("quecc-llava-7b")
    >>> inputs = processor(images=image, text="USER: <image>\nList the items. ASSISTANT:")
    >>> inputs.keys()
    dict_keys(['input_ids', 'attention_mask', 'pixel_values', 'query_input_ids', 'query_attention_mask'])
    ```"""

    valid_processor_kwargs = QueCCLlavaProcessorKwargs

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_visual_tokens: int = 16,
        chat_template: str | None = V1_CHAT_TEMPLATE,
        answer_prefix: str = "ASSISTANT",
        **kwargs: Any,
    ):
        check_integer(max_visual_tokens, "max_visual_tokens")
        if max_visual_tokens < 1:
            raise ValueError(f"`max_visual_tokens` is {max_visual_tokens}, but must be 1 or more.")
        check_fixed_number(kwargs.pop("num_visual_tokens", None), max_visual_tokens)
        check_answer_prefix(answer_prefix)
        super().__init__(image_processor, tokenizer, max_visual_tokens, chat_template, **kwargs)
        self.answer_prefix = answer_prefix
        # Written on saving anyhow; from the start, so that a processor equals what it is saved as.
        self.auto_map = {"AutoProcessor": "processing_quecc_llava.QueCCLlavaProcessor"}

    @classmethod
    def from_llava(
        cls, llava: str | os.PathLike | LlavaProcessor, *, answer_prefix: str | None = None, **kwargs: Any
    ) -> "QueCCLlavaProcessor":
        """
        As [`CompressedLlavaProcessor.from_llava`].

        Args:
            answer_prefix: What stands between a question and its answer; by default what the LLaVA's chat template
                puts there.

        Raises:
            ValueError: That is nothing.
        """
        processor = super().from_llava(llava, **kwargs)
        if answer_prefix is None:
            content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
            chat = [{"role": "user", "content": content}]
            prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
            answer_prefix = prompt.rpartition("QUESTION")[2].strip()
        check_answer_prefix(answer_prefix)
        processor.answer_prefix = answer_prefix
        return processor

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        query: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        As of every processor.

        Args:
            images, text, **kwargs: As in [`ProcessorMixin`]'s call.
            query: The question that the images are encoded for, for all or one for each, instead of those that the
                prompts ask.

        Returns:
            What the tokenizer and the image processor return, and for images `query_input_ids` and
            `query_attention_mask`, `(images, length)`.

        Raises:
            ValueError: An image has no question behind it, there is not one `query` for each image, or
                `num_visual_tokens` is another number than the model's own.
        """
        inputs = super().__call__(images=images, text=text, **kwargs)
        prompts = [text] if isinstance(text, str) else text or []
        questions = self.questions_per_image(prompts, query, len(inputs.get("pixel_values", [])))
        if questions:
            # Text, also where it names the placeholder. Without padding where none is needed, for tokenizers without.
            questions = [question.replace(self.image_token, "< image>") for question in questions]
            tokens = self.tokenizer(
                questions,
                padding=len(set(questions)) > 1,
                # A question is what a user typed, so that none of its control tokens was meant.
                split_special_tokens=kwargs.get("sanitize_control_tokens") or None,
            )
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            if len(prompts) == 1 and len(set(questions)) > 1:
                # A pipeline's batches may keep the first row of each prompt alone. This one tells that there were
                # others by a masked placeholder, which no question holds.
                if 0 in mask[0]:
                    ids[0][mask[0].index(0)] = self.image_token_id
                else:
                    ids, mask = [[*row, self.image_token_id] for row in ids], [[*row, 0] for row in mask]
            return_tensors = {**kwargs.get("text_kwargs", {}), **kwargs}.get("return_tensors")
            query_inputs = {"query_input_ids": ids, "query_attention_mask": mask}
            inputs.update(BatchFeature(query_inputs, tensor_type=return_tensors))
        return inputs

    def questions_per_image(
        self, prompts: list[str], query: str | list[str] | None, num_images: int, name: str = "query"
    ) -> list[str]:
        """
        The question of each image of some prompts: their own, or what a call passes by an argument of this name.

        Raises:
            ValueError: An image has no question behind it, or there is not one in the argument for each image.
        """
        if query is None:
            return [question for prompt in prompts for question in self.questions(prompt)]
        questions = [query] * num_images if isinstance(query, str) else query
        if not (
            isinstance(questions, (list, tuple))
            and len(questions) == num_images
            and all(isinstance(question, str) and question.strip() for question in questions)
        ):
            raise ValueError(
                f"`{name}` is {query!r}, but must be a question, or a list of one question for each of the "
                f"{num_images} images."
            )
        return list(questions)

    def questions(self, prompt: str) -> list[str]:
        """
        The question of each image in a prompt.

        Raises:
            ValueError: An image has none behind it.
        """
        questions = []
        for turn in split_at_tokens(prompt, self.answer_prefix):
            *images, rest = split_at_tokens(turn, self.image_token)
            first_line, line_break, others = rest.partition("\n")
            question = re.sub(f"[{TYPED_TOKEN_MARKS}]", "", others if line_break else first_line).strip()
            if images and not question:
                raise ValueError(
                    f"There is no question behind {self.image_token} in {turn[-100:]!r}. Ask one, or pass `query`, "
                    "the question to encode the image for."
                )
            questions += [question] * len(images)
        return questions

    def num_visual_tokens_per_image(
        self, num_visual_tokens: int | None, num_images: int, name: str = "num_visual_tokens"
    ) -> list[int]:
        check_fixed_number(num_visual_tokens, self.max_visual_tokens, name)
        return [self.max_visual_tokens] * num_images

    # `num_visual_tokens` is not the image processor's, and the loaded images have no `input_data_format` any more.
    def _process_images(
        self, images: ImageInput, num_visual_tokens: Any = None, input_data_format: Any = None, **kwargs: Any
    ) -> tuple[BatchFeature, list[str]]:
        return super()._process_images(images, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.max_visual_tokens

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "query_input_ids", "query_attention_mask"]


def check_answer_prefix(answer_prefix: Any) -> None:
    """
    Raises:
        ValueError: It is no text, or an empty one.
    """
    if not isinstance(answer_prefix, str) or not answer_prefix:
        raise ValueError(f"`answer_prefix` is {answer_prefix!r}, but must be text that stands before answers.")


QueCCLlavaProcessor.register_for_auto_class()

__all__ = ["QueCCLlavaProcessor"]
