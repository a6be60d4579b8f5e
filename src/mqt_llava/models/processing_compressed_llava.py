# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Processor of a LLaVA that has a compressor between vision tower and decoder: what all of them share."""

import base64
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import PIL.Image
import PIL.ImageOps
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, LlavaImageProcessorPil, LlavaProcessor, PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ChannelDimension, ImageInput, infer_channel_dimension_format, load_image
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput
from transformers.utils import is_numpy_array

from .configuration_compressed_llava import plain_numbers


Processor = TypeVar("Processor", bound="CompressedLlavaProcessor")

IMAGE_TOKEN = "<image>"
# What transformers puts around control tokens that a user typed, where a chat is asked for `sanitize_control_tokens`.
TYPED_TOKEN_MARKS = "\U000f0000\U000f0001"

# LLaVA's "v1" conversation. A message shows its images first, as the model was trained. A user who types `<image>`
# gets `< image>`, also across two blocks of text, so that text is never taken for an image.
V1_CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{ content | replace('<image>', '< image>') }}
{%- else -%}
{%- for block in content -%}
{%- if block['type'] == 'image' -%}{{ '<image>\n' }}
{%- elif block['type'] != 'text' -%}{{ raise_exception("A message cannot show " + block['type'] + ".") }}
{%- endif -%}
{%- endfor -%}
{{ content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join | replace('<image>', '< image>') }}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] != 'system' -%}
{{ "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, \
and polite answers to the human's questions. " }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ render(message['content']) + ' ' }}
{%- elif message['role'] == 'user' -%}
{{ 'USER: ' + render(message['content']) + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'ASSISTANT: ' }}{% generation %}{{ render(message['content']) + eos_token }}{% endgeneration %}
{%- else -%}
{{ raise_exception("A message's role is " + message['role'] + ", but must be system, user or assistant.") }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


class CompressedLlavaProcessor(ProcessorMixin):
    """
    Loads images, pads them to squares and tokenises prompts.

    Args:
        image_processor: Turns images into `pixel_values`; always run by its PIL backend, whose pixels are the ones
            that the model was trained on.
        tokenizer: A tokenizer that knows the placeholder `<image>`.
        max_visual_tokens (`int`):
            The most visual tokens an image can have.
        chat_template (`str`, *optional*):
            LLaVA's v1 template by default.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_visual_tokens: int = 256,
        chat_template: str | None = V1_CHAT_TEMPLATE,
        **kwargs: Any,
    ):
        # Checks that these are an image processor and a tokenizer.
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            raise ValueError(
                f"`tokenizer` does not know {IMAGE_TOKEN}. Add it with "
                f"`tokenizer.add_tokens({IMAGE_TOKEN!r}, special_tokens=True)`, and give the model its id."
            )
        if image_processor.backend != "pil":
            # The auto class prefers torchvision wherever it is installed, but that resizes to other pixels.
            self.image_processor = pil_class_of(image_processor).from_dict(image_processor.to_dict())
        # `from_pretrained` hands its keywords to the tokenizer too, whose own would then override the processor's.
        for name in ("num_visual_tokens", "max_visual_tokens"):
            tokenizer.init_kwargs.pop(name, None)
        self.max_visual_tokens = max_visual_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @classmethod
    def from_llava(
        cls: type[Processor],
        llava: str | os.PathLike | LlavaProcessor,
        *,
        config: PreTrainedConfig | None = None,
        pad_to_square: bool | None = None,
        **kwargs: Any,
    ) -> Processor:
        """
        The processor of a model that was made of a LLaVA by its own `from_llava`.

        Tokenizer and chat template are the LLaVA's own, and images are resized, cropped and normalised as by it: what
        differs is how many placeholders an image has. As always in this package, Pillow computes the pixels, and what
        is transparent shows the pixels beneath.

        Args:
            llava: LLaVA's processor, or the folder or Hub id of the LLaVA.
            config: Of the LLaVA, or of the model that was made of it, which the processor must fit. By default the one
                in the folder; none where a processor is passed.
            pad_to_square: Whether images are padded to squares first, so that nothing is cropped. As the LLaVA does by
                default.
            kwargs: Further arguments of the processor, such as `max_visual_tokens`.

        Raises:
            ValueError: It is no LLaVA's processor, has another image token than `<image>` or no chat template, or does
                not fit the configuration.
        """
        if isinstance(llava, (str, os.PathLike)):
            config = AutoConfig.from_pretrained(llava) if config is None else config
            llava = AutoProcessor.from_pretrained(llava)
        if not isinstance(llava, LlavaProcessor):
            raise ValueError(
                f"`llava` is a {type(llava).__name__}, but must be a LlavaProcessor, or the folder or Hub id of one."
            )
        if llava.image_token != IMAGE_TOKEN:
            raise ValueError(f"The image token of `llava` is {llava.image_token!r}, but must be {IMAGE_TOKEN!r}.")
        template = kwargs.pop("chat_template", llava.chat_template or llava.tokenizer.chat_template)
        if template is None:
            raise ValueError("`llava` has no chat template. Pass the one that it was trained on as `chat_template`.")
        image_processor = llava_image_processor(llava.image_processor)
        if pad_to_square is not None:
            image_processor.do_pad = pad_to_square
        processor = cls(image_processor, llava.tokenizer, chat_template=template, **kwargs)
        if config is not None:
            processor._check_fits(config, llava.patch_size)
        return processor

    def _check_fits(self, config: PreTrainedConfig, patch_size: int | None) -> None:
        """
        Raises:
            ValueError: The model of this configuration reads other tokens or other images.
        """
        pixels = self.image_processor(PIL.Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"]
        side = config.vision_config.image_size
        for name, ours, theirs in (
            ("id of the image token", self.image_token_id, config.image_token_id),
            ("size of an image in pixels", tuple(pixels.shape[-2:]), (side, side)),
            ("`patch_size`", patch_size, config.vision_config.patch_size),
        ):
            if ours not in (None, theirs):
                raise ValueError(
                    f"The {name} is {ours} in the processor and {theirs} in `config`, but must be the same: these "
                    "belong to different models."
                )

    @staticmethod
    def validate_init_kwargs(processor_config: dict, valid_kwargs: list[str]) -> tuple[dict, dict]:
        return ProcessorMixin.validate_init_kwargs(processor_config, [*valid_kwargs, "num_visual_tokens"])

    def prepare_inputs_layout(
        self, images: ImageInput | None = None, text: TextInput | list[TextInput] | None = None, **kwargs: Any
    ) -> Any:
        """Loads the images, into one flat list of RGB images; prompts without any are text alone."""
        is_batch = isinstance(text, (list, tuple))
        if text is not None and not all(isinstance(sample, str) for sample in (text if is_batch else [text])):
            raise TypeError(f"`text` is {repr(text)[:100]}, but must be a string or a list of strings.")
        if images is not None:
            if is_batch and isinstance(images, (list, tuple)):
                self._check_images_per_prompt(images, text)
            data_format = {**kwargs.get("images_kwargs", {}), **kwargs}.get("input_data_format")
            images = flatten_images(images)
            images = [load_rgb(image, index, data_format) for index, image in enumerate(images)] or None
        # Text alone has none, but a wrong number is not passed over.
        self.num_visual_tokens_per_image(num_visual_tokens_of_call(kwargs), len(images or []))
        return super().prepare_inputs_layout(images=images, text=text, **kwargs)

    def apply_chat_template(
        self, conversation: list[dict] | list[list[dict]], chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """
        As of every processor. The content item of an image may hold `num_visual_tokens`, which goes before the call's
        number for that image; a list in `processor_kwargs` has an entry for every image all the same.

        Raises:
            TypeError, ValueError: An item's number cannot be asked for, does not belong to an image, or would be lost
                in the text that `tokenize=False` returns.
        """
        of_items = num_visual_tokens_of_items(conversation)
        if any(number is not None for number in of_items.values()):
            if not kwargs.get("tokenize"):
                raise ValueError(
                    f"`{next(item for item in of_items if of_items[item] is not None)}` has `num_visual_tokens`, but "
                    "the text that `tokenize=False` returns cannot carry it: pass `tokenize=True`, or leave it out "
                    "and give the number where the text is tokenized."
                )
            # A copy, written to where the call itself gives a number, so that one given twice is refused as ever.
            kwargs["processor_kwargs"] = place = dict(kwargs.get("processor_kwargs") or {})
            if "num_visual_tokens" in kwargs:
                place = kwargs
            elif "num_visual_tokens" in place.get("images_kwargs", {}):
                place["images_kwargs"] = place = dict(place["images_kwargs"])
            of_call = self.num_visual_tokens_per_image(place.get("num_visual_tokens"), len(of_items))
            num_visual_tokens = list(of_call)
            for index, (item, number) in enumerate(of_items.items()):
                if number is not None:
                    (num_visual_tokens[index],) = self.num_visual_tokens_per_image(
                        number, 1, f"{item}['num_visual_tokens']"
                    )
                if isinstance(plain_numbers(number), (list, tuple)):
                    raise TypeError(f"`{item}['num_visual_tokens']` is {number!r}, but one image has one number.")
            if num_visual_tokens != of_call:
                place["num_visual_tokens"] = num_visual_tokens
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def num_visual_tokens_per_image(
        self, num_visual_tokens: int | list[int] | None, num_images: int, name: str = "num_visual_tokens"
    ) -> list[int]:
        """
        How many visual tokens each image gets where these are asked for, or none, by an argument of this name.

        Raises:
            TypeError, ValueError: That cannot be asked for.
        """
        raise NotImplementedError

    def validate_inputs(
        self, images: ImageInput | None = None, text: list[TextInput] | None = None, **kwargs: Any
    ) -> None:
        if text is not None:
            num_tokens, num_images = [sample.count(self.image_token) for sample in text], len(images or [])
            if sum(num_tokens) != num_images:
                raise ValueError(
                    f"The prompts have {sum(num_tokens)} {self.image_token} tokens, but {num_images} images were "
                    f"passed. The number of {self.image_token} tokens in the prompts should be the same as the number "
                    f"of images (tokens per prompt: {num_tokens})."
                )
        super().validate_inputs(images=images, text=text, **kwargs)

    def _check_images_per_prompt(self, images: list, text: list[TextInput]) -> None:
        if not images or not all(isinstance(row, (list, tuple)) for row in images):
            return
        if len(images) != len(text):
            raise ValueError(
                f"`images` is a list of {len(images)} lists, but there are {len(text)} prompts. The number of "
                f"{self.image_token} tokens in the prompts should be the same as the number of images, list by list."
            )
        for index, (row, sample) in enumerate(zip(images, text)):
            num_tokens = len(split_at_tokens(sample, self.image_token)) - 1
            if num_tokens != len(row):
                raise ValueError(
                    f"text[{index}] has {num_tokens} {self.image_token} tokens, "
                    f"but images[{index}] holds {len(row)} images."
                )

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs: Any) -> MultiModalData:
        """
        The placeholders that images become, for engines that reserve memory ahead of requests.

        Args:
            image_sizes: `(height, width)` of each image.
            **kwargs: Of a call, `num_visual_tokens` among them.

        Raises:
            TypeError, ValueError: `num_visual_tokens` is none that a call could ask for.
        """
        if image_sizes is None:
            return MultiModalData()
        num_visual_tokens = self.num_visual_tokens_per_image(num_visual_tokens_of_call(kwargs), len(image_sizes))
        return MultiModalData(num_image_tokens=num_visual_tokens, num_image_patches=[1] * len(image_sizes))


def pil_class_of(image_processor: BaseImageProcessor) -> type[PilBackend]:
    """The class that does with Pillow what an image processor does."""
    own = type(image_processor)
    return own if image_processor.backend == "pil" else getattr(transformers, own.__name__ + "Pil")


def llava_image_processor(image_processor: BaseImageProcessor) -> LlavaImageProcessorPil:
    """
    An image processor of the LLaVA kind, which can also pad to squares, that makes the pixels of another one.

    Raises:
        ValueError: The other one does more than to resize, crop, rescale and normalise.
    """
    pil_class, settings = pil_class_of(image_processor), image_processor.to_dict()
    if pil_class._preprocess is PilBackend._preprocess:  # CLIP's, SigLIP's and more, which differ in their defaults
        settings = {"do_center_crop": False, **settings, "do_pad": False}
    elif pil_class is not LlavaImageProcessorPil:
        raise ValueError(
            f"The image processor of `llava` is a {type(image_processor).__name__}, but must be one that only "
            "resizes, crops, rescales and normalises, such as CLIP's, SigLIP's or LLaVA's."
        )
    return LlavaImageProcessorPil.from_dict(settings)


def split_at_tokens(text: str, token: str) -> list[str]:
    """As `text.split(token)`, but what a user typed and transformers has marked as text is no token."""
    return re.split(f"(?<!{TYPED_TOKEN_MARKS[0]}){re.escape(token)}", text)


def num_visual_tokens_of_call(kwargs: dict) -> int | list[int] | None:
    """The `num_visual_tokens` among the keywords of a call."""
    return {**kwargs.get("images_kwargs", {}), **kwargs}.get("num_visual_tokens")


def num_visual_tokens_of_items(conversation: list, name: str = "conversation") -> dict[str, Any]:
    """
    What the content items of images say about `num_visual_tokens`, in order and by their places; None is nothing.

    Raises:
        ValueError: An item says so that is no image.
    """
    numbers = {}
    for i, message in enumerate(conversation):
        if isinstance(message, (list, tuple)):  # one of several conversations
            numbers |= num_visual_tokens_of_items(message, f"{name}[{i}]")
            continue
        content = message.get("content") if isinstance(message, dict) else None
        for j, item in enumerate(content if isinstance(content, (list, tuple)) else []):
            if not isinstance(item, dict):
                continue  # what else a template may take
            place, number = f"{name}[{i}]['content'][{j}]", item.get("num_visual_tokens")
            if item.get("type") in ("image", "image_url"):
                numbers[place] = number
            elif number is not None:
                raise ValueError(f"`{place}['num_visual_tokens']` is {number!r}, but only images have visual tokens.")
    return numbers


def is_array(image: Any) -> bool:
    return isinstance(image, torch.Tensor) or is_numpy_array(image)


def flatten_images(images: Any) -> list:
    """One image, a list, or a list of lists (images prompt by prompt), as a flat list in the same order."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten_images(item)]
    if is_array(images) and images.ndim == 4:
        return list(images)
    return [images]


def load_rgb(image: Any, index: int, data_format: str | None = None) -> PIL.Image.Image:
    """
    Reads one image in RGB, see [`to_rgb`].

    Args:
        image: A PIL image, a path, a URL, base64, or an array or tensor of integers in 0..255, `(height, width)` or
            with 1, 3 or 4 channels first or last.
        index: Its place among the images, for errors and warnings.
        data_format: `"channels_first"` or `"channels_last"` for arrays whose shape leaves it open.

    Raises:
        TypeError: It is none of these.
        ValueError: It cannot be decoded, has no pixels, or would not fit into memory once it is padded to a square.
    """
    if is_array(image):
        image = array_to_image(image, index, data_format)
    elif isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, str):
        with naming_image(index):
            image = open_image(image)
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(
            f"images[{index}] is a {type(image).__name__}, "
            "but must be a PIL image, an array, a tensor, a path or a URL."
        )
    check_image_size(*image.size, index)
    return to_rgb(image, index)


def open_image(source: str) -> PIL.Image.Image:
    """
    As transformers' `load_image`, but with the pixels that the file holds: in RGB nobody can tell what deep ones have
    lost. Only what is behind a URL comes in RGB.
    """
    if source.startswith(("http://", "https://")):
        return load_image(source)
    if os.path.isfile(source):
        return PIL.ImageOps.exif_transpose(PIL.Image.open(source))
    try:
        data = source.partition(",")[2] if source.startswith("data:image/") else source
        return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(base64.decodebytes(data.encode()))))
    except Exception as error:
        raise ValueError(f"it must be a valid URL, a valid path, or an image in base64. Got {source}") from error


def to_rgb(image: PIL.Image.Image, index: int) -> PIL.Image.Image:
    """
    What the original code makes of an image: what is transparent shows the pixels beneath, where transformers would
    show white, and of deep pixels no more than 0..255 are told apart, with a warning.
    """
    with naming_image(index):
        rgb = image.convert("RGB")
        # The colour that files without an alpha channel mark as transparent outlives the conversion.
        rgb.info.pop("transparency", None)
        if image.mode == "F" or image.mode.startswith("I"):
            low, high = image.getextrema()
            if not 0 <= low <= high <= 255 or (image.mode == "F" and high <= 1):
                warnings.warn(
                    f"images[{index}] has values from {low} to {high} (mode {image.mode}), of which the model sees "
                    "integers in 0..255 only: what is above is white. Scale it to 8 bits first.",
                    stacklevel=2,
                )
    return rgb


@contextmanager
def naming_image(index: int) -> Iterator[None]:
    """Whatever goes wrong in here, says which image it was. Corrupt files make decoders raise anything."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"images[{index}] cannot be read: {str(error)[:500]}") from error


def array_to_image(image: Any, index: int, data_format: str | None) -> PIL.Image.Image:
    name = f"images[{index}] is an array of shape {tuple(image.shape)} and type {image.dtype}"
    if isinstance(image, torch.Tensor) and image.layout != torch.strided:
        raise TypeError(
            f"images[{index}] is a tensor of layout {image.layout}, but must be dense: pass `.to_dense()`."
        )
    with naming_image(index):
        # The copy is for read-only arrays and for those that count backwards, as BGR turned into RGB does.
        pixels = image.detach().cpu() if isinstance(image, torch.Tensor) else torch.from_numpy(image.copy())
    if pixels.ndim == 3 and data_format is None and {pixels.shape[0], pixels.shape[-1]} & {1, 3, 4}:
        data_format = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and data_format == ChannelDimension.FIRST:
        pixels = pixels.permute(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name}, but must be (height, width), or have 1, 3 or 4 channels first or last.")
    check_image_size(pixels.shape[1], pixels.shape[0], index)
    is_integer = not (pixels.is_floating_point() or pixels.is_complex() or pixels.dtype == torch.bool)
    if not is_integer or pixels.long().min() < 0 or pixels.long().max() > 255:
        # Floats could mean 0..1 or 0..255, and the wrong guess is a black image.
        raise ValueError(f"{name}, but must hold integers in 0..255.")
    pixels = pixels.to(torch.uint8).numpy()
    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def check_image_size(width: int, height: int, index: int) -> None:
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if width == 0 or height == 0:
        raise ValueError(f"images[{index}] is {width} x {height}: it has no pixels.")
    # The limit at which PIL refuses a file, here for the square: a long thin image is small until it is padded.
    if limit is not None and max(width, height) ** 2 > 2 * limit:
        raise ValueError(
            f"images[{index}] is {width} x {height}; padded to a square it exceeds {2 * limit} pixels "
            "(twice `PIL.Image.MAX_IMAGE_PIXELS`). Scale it down first."
        )
