"""
Trains the checkpoint in model_cards/mqt-llava-tiny from scratch, on two CPU cores (an hour):

    OMP_WAIT_POLICY=passive python examples/fashion_mosaics/train.py --output_dir runs/mqt-llava-tiny

A small CLIP vision tower, a query transformer of 16 queries and a small Llama learn together, in three stages: to list
everything, then to find rows, columns and single places, both with all 16 visual tokens, and at last every kind of
question at a number of visual tokens that is drawn for each batch.

Called again with the same folder, it goes on from the last checkpoint. Threads that wait without spinning
leave a core to the data worker.
"""

import random
import re
from dataclasses import dataclass, field

import torch
from mosaics import DATASET_FOLDER, ITEM_PIXELS, SIDE, to_messages
from testbeds import TESTBEDS
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CLIPVisionConfig,
    HfArgumentParser,
    LlamaConfig,
    LlavaImageProcessorPil,
    TokenizersBackend,
    set_seed,
)
from transformers.utils.chat_template_utils import render_jinja_template

from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from mqt_llava.models.processing_compressed_llava import V1_CHAT_TEMPLATE
from mqt_llava.training import (
    BudgetCollator,
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    last_complete_checkpoint,
    parse_budget,
)
from mqt_llava.training.parts import PARTS


WIDTH = 128
# Every m, and the powers of two, at which the model is evaluated, far more often.
MOSTLY_POWERS = f"WeightedBudget({ {m: 14 if m in (1, 2, 4, 8, 16) else 1 for m in range(1, 17)} })"


@dataclass
class TinyTrainingArguments(MQTLlavaTrainingArguments):
    output_dir: str = "runs/mqt-llava-tiny"
    max_steps: int = 4000
    per_device_train_batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    logging_steps: int = 50
    save_steps: int = 250
    save_total_limit: int = 2
    seed: int = 0
    report_to: str = "none"
    trained_parts: list[str] = field(default_factory=lambda: list(PARTS))
    train_sampling_strategy: str = "sequential"
    lr_scheduler_type: str = "warmup_stable_decay"
    dataloader_num_workers: int = 1
    data_folder: str = field(default=DATASET_FOLDER, metadata={"help": "Folder with Fashion-MNIST's four files."})
    testbed: str = field(default="mosaics", metadata={"help": f"One of {', '.join(TESTBEDS)}."})
    list_steps: int = field(default=250, metadata={"help": "Steps of the first stage: listing alone, at m = M."})
    position_steps: int = field(default=1500, metadata={"help": "Step at which m becomes random."})
    early_budget: int | None = field(default=None, metadata={"help": "m until then, M by default."})
    budget: str = field(default=MOSTLY_POWERS, metadata={"help": "How m is drawn from then on."})

    def __post_init__(self):
        self.lr_scheduler_kwargs = {"num_decay_steps": self.max_steps - self.position_steps, "decay_type": "linear"}
        super().__post_init__()


class MosaicConversations(torch.utils.data.Dataset):
    """Conversation i is a pure function of the seed and i, so a resumed run sees what the first would have seen."""

    def __init__(self, args: TinyTrainingArguments):
        self.args, self.testbed = args, TESTBEDS[args.testbed]
        self.items = self.testbed.load_items("train", args.data_folder)

    def __len__(self):
        return self.args.max_steps * self.args.per_device_train_batch_size

    def __getitem__(self, index: int) -> dict:
        step = index // self.args.per_device_train_batch_size
        return {"id": str(index), "messages": self.conversation(index, step)}

    def conversation(self, index: int, step: int) -> list[dict]:
        """Chat messages as they are asked at a step of the training."""
        rng = random.Random(f"{self.args.seed}-{index}")
        mosaic = self.testbed.draw_mosaic(rng, self.items)
        ask = self.testbed.QUESTION_KINDS
        if step < self.args.list_steps:
            questions = ask["list"](rng, mosaic, 1)
        elif step < self.args.position_steps:
            # Rows and columns lead over from the whole list to single items.
            kind, count = rng.choice([("list", 1), ("row", 4), ("column", 4), *[("position", 7)] * 3])
            questions = ask[kind](rng, mosaic, count)
        else:
            # Coarse questions come first, for their answers could be read off a listing.
            coarse = [*ask["presence"](rng, mosaic, 3), *ask["most"](rng, mosaic, 1)]
            rng.shuffle(coarse)
            kind, count = rng.choice([("list", 1), ("row", 4), ("column", 4), *[("position", 6)] * 2])
            questions = [*coarse[: rng.randrange(4)], *ask[kind](rng, mosaic, count)]
        return to_messages(mosaic.image, questions)


class StagedCollator(BudgetCollator):
    """Draws budgets only from a record on, and takes an early one until then."""

    def __init__(self, processor: MQTLlavaProcessor, budget: str, early_budget: int, first_drawn: int, seed: int):
        super().__init__(processor, parse_budget(budget), seed=seed)
        self.early_budget, self.first_drawn = early_budget, first_drawn

    def draw_num_visual_tokens(self, record_ids: list[str]) -> list[int]:
        return (
            super().draw_num_visual_tokens(record_ids)
            if int(record_ids[0]) >= self.first_drawn
            else [self.early_budget]
        )


def train_tokenizer(dataset: MosaicConversations, vocab_size: int) -> TokenizersBackend:
    """A BPE like Llama's, learned on conversations of the last stage; what it does not know it spells in bytes."""
    conversations = [dataset.conversation(index, dataset.args.position_steps) for index in range(128_000, 130_000)]
    texts, _ = render_jinja_template(conversations=conversations, chat_template=V1_CHAT_TEMPLATE, eos_token="</s>")

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            pre_tokenizers.Split(Regex(r"[,.?!:\n]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁"],
    )
    tokenizer.train_from_iterator([re.sub("<image>|</s>", "\n", text) for text in texts], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    # Text behind an image is tokenised as if it began there, as in the original.
    tokenizer.normalizer = normalizers.Replace(Regex(r"<image>(?!<image>|\z)"), "<image> ")
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=True)])
    return TokenizersBackend(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    dataset: MosaicConversations,
    num_visual_tokens: int = SIDE * SIDE,
    vocab_size: int = 640,
    **pixel_scale: list[float],
) -> MQTLlavaProcessor:
    pixels = SIDE * ITEM_PIXELS  # of either testbed
    image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}, do_pad=True, **pixel_scale
    )
    tokenizer = train_tokenizer(dataset, vocab_size)
    return MQTLlavaProcessor(image_processor, tokenizer, max_visual_tokens=num_visual_tokens)


def parts(tokenizer: TokenizersBackend, patch_size: int) -> dict[str, CLIPVisionConfig | LlamaConfig]:
    """The configurations of a small vision tower and a small decoder."""
    vision_config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE * ITEM_PIXELS,
        patch_size=patch_size,
    )
    text_config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"vision_config": vision_config, "text_config": text_config}


def build_model(processor: MQTLlavaProcessor) -> MQTLlavaForConditionalGeneration:
    config = MQTLlavaConfig(
        **parts(processor.tokenizer, patch_size=ITEM_PIXELS),
        image_token_id=processor.image_token_id,
        max_visual_tokens=processor.max_visual_tokens,
        resampler_num_attention_heads=8,
        vision_feature_layer=-1,
    )
    return MQTLlavaForConditionalGeneration(config)


def collator(processor: MQTLlavaProcessor, args: TinyTrainingArguments) -> StagedCollator:
    """m is random once single places have been learned."""
    early_budget = args.early_budget or processor.max_visual_tokens
    first_drawn = args.position_steps * args.per_device_train_batch_size
    return StagedCollator(processor, args.budget, early_budget, first_drawn, args.seed)


def main(argv: list[str] | None = None):
    (args,) = HfArgumentParser(TinyTrainingArguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    dataset = MosaicConversations(args)
    last_checkpoint = last_complete_checkpoint(args.output_dir)
    # What the weights were trained with goes on with them.
    processor = MQTLlavaProcessor.from_pretrained(last_checkpoint) if last_checkpoint else build_processor(dataset)
    model = build_model(processor)
    trainer = MQTLlavaTrainer(model, args, collator(processor, args), train_dataset=dataset)
    trainer.train(resume_from_checkpoint=last_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
