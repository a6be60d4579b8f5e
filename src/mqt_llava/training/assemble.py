"""What the recipes need, from their arguments: the model with its processor, and the conversations."""

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, LlavaImageProcessorPil

from ..modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..processing_compressed_llava import IMAGE_TOKEN
from ..processing_mqt_llava import MQTLlavaProcessor
from .arguments import DataArguments, ModelArguments
from .checkpoints import load_trained_parts
from .dataset import ConversationDataset


def load_model_and_processor(
    args: ModelArguments, **kwargs
) -> tuple[MQTLlavaForConditionalGeneration, MQTLlavaProcessor]:
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
        processor = MQTLlavaProcessor.from_pretrained(args.model_name_or_path)
        model = MQTLlavaForConditionalGeneration.from_pretrained(
            args.model_name_or_path, dtype=args.dtype, attn_implementation=args.attn_implementation, **kwargs
        )
    else:
        processor = build_processor(*parts, args.max_visual_tokens)
        model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
            *parts,
            image_token_id=processor.image_token_id,
            dtype=args.dtype,
            max_visual_tokens=args.max_visual_tokens,
            resampler_num_attention_heads=args.resampler_num_attention_heads,
            vision_feature_layer=args.vision_feature_layer,
        )
        model.set_attn_implementation(args.attn_implementation)
    if args.trained_parts_from is not None:
        load_trained_parts(model, args.trained_parts_from)
    processor.image_processor.do_pad = args.pad_to_square
    return model, processor


def build_processor(vision: str, text: str, max_visual_tokens: int = 256) -> MQTLlavaProcessor:
    """
    The processor of a model that is put together from two others.

    Args:
        vision: Folder or Hub id of the vision tower, whose image size, mean and deviation are taken.
        text: Folder or Hub id of the decoder, whose tokenizer gets `<image>` as a token of its own.
        max_visual_tokens: M.
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
    return MQTLlavaProcessor(image_processor, tokenizer, max_visual_tokens=max_visual_tokens)


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
