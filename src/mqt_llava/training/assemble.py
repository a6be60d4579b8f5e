"""What the recipes need, from their arguments: the model with its processor, and the conversations."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
)

from ..models.modeling_compressed_llava import CompressedLlavaForConditionalGeneration
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.modeling_quecc_llava import QueCCLlavaForConditionalGeneration
from ..models.processing_compressed_llava import IMAGE_TOKEN, CompressedLlavaProcessor
from ..models.processing_mqt_llava import MQTLlavaProcessor
from ..models.processing_quecc_llava import QueCCLlavaProcessor
from .arguments import DataArguments, ElasticArguments, ModelArguments
from .budgets import parse_budget
from .checkpoints import load_trained_parts
from .collator import PLAIN_TEMPLATE, BudgetCollator
from .dataset import ConversationDataset
from .question_collator import QuestionCollator


def load_model_and_processor(
    args: ModelArguments, **kwargs: Any
) -> tuple[CompressedLlavaForConditionalGeneration, CompressedLlavaProcessor]:
    """
    Args:
        args: Which checkpoint, or which vision tower and decoder.
        kwargs: Further arguments of `from_pretrained`, such as `quantization_config`.

    Raises:
        ValueError: Neither or both are named.
    """
    parts = (args.vision_tower, args.language_model)
    is_missing = [name is None for name in (args.model_name_or_path, *parts)]
    if is_missing not in ([False, True, True], [True, False, False]):
        raise ValueError(
            "Name either `model_name_or_path`, a checkpoint, or both `vision_tower` and `language_model`; got "
            f"{args.model_name_or_path!r}, {args.vision_tower!r} and {args.language_model!r}."
        )
    if args.model_name_or_path is not None:
        processor: Any = AutoProcessor.from_pretrained(args.model_name_or_path)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            args.model_name_or_path, dtype=args.dtype, attn_implementation=args.attn_implementation, **kwargs
        )
        if not isinstance(model, CompressedLlavaForConditionalGeneration):
            raise ValueError(
                f"`model_name_or_path` {args.model_name_or_path!r} is a {model.config.model_type!r}, but must be a "
                "checkpoint of this package."
            )
    else:
        model, processor = _join_parts(args)
        model.set_attn_implementation(args.attn_implementation)
    if args.trained_parts_from is not None:
        load_trained_parts(model, args.trained_parts_from)
    processor.image_processor.do_pad = args.pad_to_square
    return model, processor


def load_elastic(
    args: ElasticArguments, **kwargs: Any
) -> tuple[LlavaForConditionalGeneration, MQTLlavaForConditionalGeneration, MQTLlavaProcessor]:
    """
    A LLaVA, and what is made of it: the model shares the LLaVA's vision tower and decoder.

    Args:
        args: Which LLaVA.
        kwargs: Further arguments of its `from_pretrained`, such as `quantization_config`.
    """
    llava = LlavaForConditionalGeneration.from_pretrained(
        args.llava_name_or_path, dtype=args.dtype, attn_implementation=args.attn_implementation, **kwargs
    )
    settings: dict[str, Any] = {"max_visual_tokens": args.max_visual_tokens}
    if args.resampler_num_attention_heads is not None:
        settings["resampler_num_attention_heads"] = args.resampler_num_attention_heads
    model = MQTLlavaForConditionalGeneration.from_llava(llava, **settings)
    processor = MQTLlavaProcessor.from_llava(args.llava_name_or_path, max_visual_tokens=args.max_visual_tokens)
    return llava, model, processor


def load_teacher(args: ModelArguments) -> LlavaForConditionalGeneration | None:
    """The LLaVA that `teacher_name_or_path` names, in the dtype that it was saved in."""
    if args.teacher_name_or_path is None:
        return None
    return LlavaForConditionalGeneration.from_pretrained(
        args.teacher_name_or_path, dtype="auto", attn_implementation=args.attn_implementation
    )


def _join_parts(args: ModelArguments) -> tuple[CompressedLlavaForConditionalGeneration, CompressedLlavaProcessor]:
    """A vision tower and a decoder with a new compressor between them."""
    settings: dict[str, Any] = {"dtype": args.dtype, "vision_feature_layer": args.vision_feature_layer}
    if args.resampler_num_attention_heads is not None:
        settings["resampler_num_attention_heads"] = args.resampler_num_attention_heads
    parts = (str(args.vision_tower), str(args.language_model))
    model_class: type[CompressedLlavaForConditionalGeneration]
    if args.compressor == "mqt":
        processor = build_processor(*parts, max_visual_tokens=args.max_visual_tokens)
        settings["max_visual_tokens"] = args.max_visual_tokens
        model_class = MQTLlavaForConditionalGeneration
    else:
        processor = build_processor(*parts, processor_class=QueCCLlavaProcessor)
        settings |= {"kernel_size": args.kernel_size, "vision_context_layers": args.vision_context_layers}
        model_class = QueCCLlavaForConditionalGeneration
    model = model_class.from_vision_text_pretrained(*parts, image_token_id=processor.image_token_id, **settings)
    if args.compressor == "quecc":
        processor.max_visual_tokens = model.config.num_visual_tokens
    return model, processor


def build_collator(
    processor: CompressedLlavaProcessor,
    budget: str,
    *,
    is_stage_1: bool = False,
    chat_template: str | None = None,
    **kwargs: Any,
) -> BudgetCollator:
    """
    What makes batches for a model.

    Args:
        processor: Of the model.
        budget: How m is drawn, as [`parse_budget`] reads it; not looked at for a QueCC-LLaVA.
        is_stage_1: Whether the conversations are images and their captions alone, which MQT-LLaVA reads as
            [`PLAIN_TEMPLATE`] writes them and QueCC-LLaVA, which needs a question, as its own template does.
        chat_template: Another template.
        kwargs: Further arguments of a [`BudgetCollator`].
    """
    if isinstance(processor, QueCCLlavaProcessor):
        return QuestionCollator(processor, chat_template=chat_template, **kwargs)
    if is_stage_1 and chat_template is None:
        chat_template = PLAIN_TEMPLATE
    return BudgetCollator(processor, parse_budget(budget), chat_template=chat_template, **kwargs)


def read_chat_template(args: DataArguments) -> str | None:
    """
    Raises:
        ValueError: There is no such file.
    """
    if args.chat_template is None:
        return None
    if not Path(args.chat_template).is_file():
        raise ValueError(f"`chat_template` is {args.chat_template!r}, but must be a Jinja file.")
    return Path(args.chat_template).read_text(encoding="utf-8")


def build_processor(
    vision: str,
    text: str,
    max_visual_tokens: int = 256,
    processor_class: type[CompressedLlavaProcessor] = MQTLlavaProcessor,
) -> CompressedLlavaProcessor:
    """
    The processor of a model that is put together from two others.

    Args:
        vision: Folder or Hub id of the vision tower, whose image size, mean and deviation are taken.
        text: Folder or Hub id of the decoder, whose tokenizer gets `<image>` as a token of its own.
        max_visual_tokens: The most visual tokens of an image.
        processor_class: Of the model.
    """
    tokenizer = AutoTokenizer.from_pretrained(text, padding_side="left")
    tokenizer.add_tokens(IMAGE_TOKEN, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    config, settings = AutoConfig.from_pretrained(vision), AutoImageProcessor.from_pretrained(vision, backend="pil")
    pixels = getattr(config, "vision_config", config).image_size
    image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": pixels},
        crop_size={"height": pixels, "width": pixels},
        image_mean=settings.image_mean,
        image_std=settings.image_std,
        do_pad=True,
    )
    return processor_class(image_processor, tokenizer, max_visual_tokens=max_visual_tokens)


def load_conversations(args: DataArguments) -> ConversationDataset:
    """
    Raises:
        ValueError: Neither or both of `data_path` and `dataset_name` are named.
    """
    if (args.data_path is None) == (args.dataset_name is None):
        raise ValueError(
            f"Name either `data_path` or `dataset_name`; got {args.data_path!r} and {args.dataset_name!r}."
        )
    if args.data_path is not None:
        return ConversationDataset.from_json(args.data_path, args.image_folder, max_bad_share=args.max_bad_share)
    import datasets

    rows = datasets.load_dataset(args.dataset_name, split=args.dataset_split)
    return ConversationDataset(rows, args.image_folder, max_bad_share=args.max_bad_share)
