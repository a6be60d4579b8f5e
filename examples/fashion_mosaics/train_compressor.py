"""
Trains a new compressor, MQT's or QueCC's, between the vision tower and the decoder of the embedded checkpoint:

    python examples/fashion_mosaics/train_compressor.py --compressor quecc --kernel_size 2 --output_dir runs/quecc-4

All three learn together: at first to list what the picture shows, with all 16 tokens where there is a choice, then all
kinds of questions. A conversation has one question, for that is what QueCC encodes an image for.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mosaics import (
    DATASET_FOLDER,
    ask_columns,
    ask_list,
    ask_most,
    ask_positions,
    ask_presence,
    ask_rows,
    draw_mosaic,
    load_items,
    to_messages,
)
from train import StagedCollator
from transformers import HfArgumentParser, set_seed

from mqt_llava import (
    MQTLlavaConfig,
    MQTLlavaForConditionalGeneration,
    MQTLlavaProcessor,
    QueCCLlavaConfig,
    QueCCLlavaForConditionalGeneration,
    QueCCLlavaProcessor,
)
from mqt_llava.training import MQTLlavaTrainer, MQTLlavaTrainingArguments, QuestionCollator
from mqt_llava.training.parts import PARTS


EMBEDDED = str(Path(__file__).parents[2] / "model_cards" / "mqt-llava-tiny")
# Where things are is asked as often as all the rest, for that takes longest to learn.
QUESTIONS = (ask_positions,) * 5 + (ask_list, ask_rows, ask_columns, ask_presence, ask_most)


@dataclass
class CompressorTrainingArguments(MQTLlavaTrainingArguments):
    output_dir: str = "runs/compressor"
    compressor: str = field(default="quecc", metadata={"choices": ["mqt", "quecc"]})
    kernel_size: int = field(default=1, metadata={"help": "Of QueCC: 1, 2 and 4 leave 16, 4 and 1 visual tokens."})
    budget: str = field(default="WeightedBudget({1: 1, 4: 1, 16: 1})", metadata={"help": "How MQT draws m."})
    start_from: str = field(default=EMBEDDED, metadata={"help": "Whose vision tower and decoder to take."})
    data_folder: str = field(default=DATASET_FOLDER, metadata={"help": "Folder with Fashion-MNIST's four files."})
    max_steps: int = 800
    list_steps: int = field(
        default=250, metadata={"help": "Steps of listing alone, with as many tokens as there are."}
    )
    per_device_train_batch_size: int = 64
    learning_rate: float = 1e-3
    resampler_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    lr_scheduler_type: str = "cosine"
    logging_steps: int = 50
    save_strategy: str = "no"
    report_to: str = "none"
    trained_parts: list[str] = field(default_factory=lambda: list(PARTS))
    train_sampling_strategy: str = "sequential"


class OneQuestionConversations(torch.utils.data.Dataset):
    """Conversation i is a pure function of the seed and i: every compressor sees the same ones in the same order."""

    def __init__(self, args: CompressorTrainingArguments):
        self.args, self.items = args, load_items("train", args.data_folder)

    def __len__(self) -> int:
        return self.args.max_steps * self.args.per_device_train_batch_size

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(f"{self.args.seed}-{index}")
        is_early = index < self.args.list_steps * self.args.per_device_train_batch_size
        questions = []
        while not questions:  # of many mosaics there is nothing most of
            mosaic = draw_mosaic(rng, self.items)
            questions = (ask_list if is_early else rng.choice(QUESTIONS))(rng, mosaic, 1)
        return {"id": str(index), "messages": to_messages(mosaic.image, questions)}


def build_model_and_processor(args: CompressorTrainingArguments):
    """The embedded checkpoint with a new compressor."""
    start = MQTLlavaForConditionalGeneration.from_pretrained(args.start_from, dtype=torch.float32)
    processor = MQTLlavaProcessor.from_pretrained(args.start_from)
    shared = {
        "vision_config": start.config.vision_config,
        "text_config": start.config.text_config,
        "image_token_id": start.config.image_token_id,
        "resampler_num_attention_heads": 8,
        "vision_feature_layer": -1,
    }
    if args.compressor == "mqt":
        config = MQTLlavaConfig(**shared, max_visual_tokens=processor.max_visual_tokens)
        model = MQTLlavaForConditionalGeneration(config)
    else:
        config = QueCCLlavaConfig(**shared, kernel_size=args.kernel_size, vision_context_layers=[1, 2, 3])
        model = QueCCLlavaForConditionalGeneration(config)
        processor = QueCCLlavaProcessor(processor.image_processor, processor.tokenizer, config.num_visual_tokens)
    weights = {name: tensor for name, tensor in start.state_dict().items() if ".resampler." not in name}
    model.load_state_dict(weights, strict=False)
    model.generation_config = start.generation_config
    return model, processor


def main(argv: list[str] | None = None):
    (args,) = HfArgumentParser(CompressorTrainingArguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    model, processor = build_model_and_processor(args)
    if args.compressor == "quecc":
        collator = QuestionCollator(processor, seed=args.seed)
    else:
        first_drawn = args.list_steps * args.per_device_train_batch_size
        collator = StagedCollator(processor, args.budget, processor.max_visual_tokens, first_drawn, args.seed)
    trainer = MQTLlavaTrainer(model, args, collator, train_dataset=OneQuestionConversations(args))
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
