"""
Trains a small LLaVA from scratch, which elasticize.py then makes elastic (an hour on two CPU cores):

    OMP_WAIT_POLICY=passive python examples/fashion_mosaics/train_llava.py --output_dir runs/llava --bf16 true

The vision tower sees each item of a mosaic as four patches, so the decoder reads 64 visual tokens. All parts learn
together, as in train.py: to list everything, then to find rows, columns and single places, at last every kind of
question. Called again with the same folder, it goes on from the last checkpoint.
"""

from dataclasses import dataclass

import torch
from mosaics import ITEM_PIXELS, SIDE
from train import MosaicConversations, TinyTrainingArguments, build_processor, parts
from transformers import (
    HfArgumentParser,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    set_seed,
)

from mqt_llava import MQTLlavaProcessor
from mqt_llava.training import BudgetCollator, FixedBudget, last_complete_checkpoint
from mqt_llava.training.checkpoints import load_weights


PATCH = ITEM_PIXELS // 2
NUM_PATCHES = (SIDE * ITEM_PIXELS // PATCH) ** 2


@dataclass
class LlavaTrainingArguments(TinyTrainingArguments):
    output_dir: str = "runs/llava"
    save_steps: int = 100
    max_steps: int = 4000


class LlavaCollator(BudgetCollator):
    """A LLaVA's prompts are those of a query transformer with as many visual tokens as there are patches."""

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}


def build_llava(tokenizer, initializer_range: float = 0.02) -> LlavaForConditionalGeneration:
    """
    Args:
        initializer_range: Scale of the decoder's weights at the start.
    """
    configs = parts(tokenizer, patch_size=PATCH)
    configs["text_config"].initializer_range = initializer_range
    config = LlavaConfig(
        **configs,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def as_llava(processor: MQTLlavaProcessor) -> LlavaProcessor:
    return LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    )


class LlavaTrainer(Trainer):
    """Trainer's own way would pass over a LLaVA's weights, whose names in a file are not those in memory."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_weights(self.model, resume_from_checkpoint)


def build_trainer(args: LlavaTrainingArguments) -> LlavaTrainer:
    dataset = MosaicConversations(args)
    processor = build_processor(dataset, num_visual_tokens=NUM_PATCHES)
    collator = LlavaCollator(processor, FixedBudget(NUM_PATCHES), seed=args.seed)
    return LlavaTrainer(
        build_llava(processor.tokenizer),
        args,
        data_collator=collator,
        train_dataset=dataset,
        processing_class=as_llava(processor),
    )


def main(argv: list[str] | None = None):
    (args,) = HfArgumentParser(LlavaTrainingArguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    trainer = build_trainer(args)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()


if __name__ == "__main__":
    main()
