"""
Trains a small LLaVA on the wide testbed (wide_mosaics.py), from scratch, by the growing region of curriculum.py:

    OMP_WAIT_POLICY=passive python examples/fashion_mosaics/train_wide.py --output_dir runs/wide

Each of 64 items is a patch, and a visual token of the decoder. What is learned, measured as the training goes, stands
in `curve.jsonl`. Called again with the same folder, it goes on from the last checkpoint.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from curriculum import STAGES, Curriculum, CurveCallback, ask_barely
from train import WIDTH, MosaicConversations, TinyTrainingArguments, build_processor
from train_llava import NUM_PATCHES, LlavaCollator, LlavaTrainer, as_llava, build_llava
from transformers import HfArgumentParser, LlavaForConditionalGeneration, set_seed
from wide_mosaics import ITEM_PIXELS, LETTERS, SIDE, to_messages

from mqt_llava import MQTLlavaProcessor
from mqt_llava.training import FixedBudget, last_complete_checkpoint


# A conversation without its words: the image, then places and answers one after the other.
BARE_TEMPLATE = """\
{%- for message in messages -%}
{%- for block in message['content'] -%}
{%- if block['type'] == 'image' -%}{{ '<image>' }}
{%- elif message['role'] == 'user' -%}{{ block['text'] + ' ' }}
{%- else -%}{% generation %}{{ block['text'] }}{% endgeneration %}{{ ' ' }}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
"""
# Patches of all photos have about this norm then: 1.
PIXEL_SCALE = {"image_mean": [0.286] * 3, "image_std": [0.353 * (3 * ITEM_PIXELS**2) ** 0.5] * 3}


@dataclass
class WideTrainingArguments(TinyTrainingArguments):
    output_dir: str = "runs/wide"
    testbed: str = "wide_mosaics"
    per_device_train_batch_size: int = 32
    max_steps: int = 6000
    position_steps: int = 4500  # when the learning rate begins to fall
    dataloader_num_workers: int = 0  # the curriculum is told in this process
    curve_steps: int = field(default=25, metadata={"help": "Steps between two measurements."})
    embedding_scale: float = field(default=0.2, metadata={"help": "Of patches and their places at the start."})
    decoder_scale: float = field(default=0.08, metadata={"help": "Of the decoder's weights at the start."})

    def __post_init__(self):
        super().__post_init__()
        if self.dataloader_num_workers:
            raise ValueError(
                f"`dataloader_num_workers` is {self.dataloader_num_workers}, but must be 0: a worker would not hear "
                "what the curriculum asks next."
            )


class WideConversations(MosaicConversations):
    """Conversation i asks what the curriculum asks at the time."""

    def __init__(self, args: WideTrainingArguments, curriculum: Curriculum):
        super().__init__(args)
        self.curriculum = curriculum

    def __getitem__(self, index: int) -> dict:
        # All of a batch are bare or none.
        rng = random.Random(f"{self.args.seed}-{index // self.args.train_batch_size}")
        share = {"cells": 1, "places": 0.25, "everything": 0.1}[self.curriculum.stage]
        bare = rng.random() < share
        return {"id": str(index), "bare": bare, "messages": self.conversation(index, bare=bare)}

    def conversation(self, index: int, step: int = 0, bare: bool = False) -> list[dict]:
        rng = random.Random(f"{self.args.seed}-{index}")
        mosaic = self.testbed.draw_mosaic(rng, self.items)
        if bare:
            return to_messages(mosaic.image, ask_barely(rng, mosaic, self.curriculum.region))
        ask, coarse = self.testbed.QUESTION_KINDS, []
        if self.curriculum.stage == "everything":
            # Coarse questions come first, for their answers could be read off a listing.
            coarse = [*ask["presence"](rng, mosaic, 3), *ask["most"](rng, mosaic, 1)]
            rng.shuffle(coarse)
        kind, count = rng.choice([("list", 1), ("row", 6), ("column", 6), *[("position", 12)] * 3])
        return to_messages(mosaic.image, [*coarse[: rng.randrange(4)], *ask[kind](rng, mosaic, count)])


class TwoTemplates:
    """A collator for conversations, and one for what is bare of words."""

    def __init__(self, processor, seed: int):
        budget = FixedBudget(NUM_PATCHES)
        self.chats = LlavaCollator(processor, budget, seed=seed)
        self.bare = LlavaCollator(processor, budget, seed=seed, chat_template=BARE_TEMPLATE)
        self.bare.expects_ends = False

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return (self.bare if rows[0]["bare"] else self.chats)(rows)


def build_model(tokenizer, args: WideTrainingArguments) -> LlavaForConditionalGeneration:
    """
    The LLaVA of train_llava.py with another start: its patches say where they are as clearly as what they show, and
    the word for a place, "C5", begins as the vector of that place.
    """
    model = build_llava(tokenizer, initializer_range=args.decoder_scale)
    vision, words = model.model.vision_tower.embeddings, model.get_input_embeddings().weight
    rows, columns = torch.randn(2, SIDE, WIDTH) / 2**0.5
    row_words = dict(zip(LETTERS, rows))
    column_words = dict(zip("12345678", columns))
    cells = {a + b: row + column for a, row in row_words.items() for b, column in column_words.items()}
    with torch.no_grad():
        vision.patch_embedding.weight.normal_(std=args.embedding_scale)
        vision.position_embedding.weight[1:] = torch.stack(list(cells.values())) * args.embedding_scale
        for text, vector in (row_words | column_words | cells).items():
            (word,) = tokenizer.encode(text, add_special_tokens=False)
            words[word] = vector * args.decoder_scale
    return model


def main(argv: list[str] | None = None):
    (args,) = HfArgumentParser(WideTrainingArguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    curriculum, last_checkpoint = Curriculum(), last_complete_checkpoint(args.output_dir)
    if last_checkpoint:
        processor = MQTLlavaProcessor.from_llava(last_checkpoint, max_visual_tokens=NUM_PATCHES)
    else:  # the tokenizer learns from all that will be asked
        processor = build_processor(
            WideConversations(args, Curriculum(STAGES[-1])), NUM_PATCHES, vocab_size=760, **PIXEL_SCALE
        )
    collate, tokenizer = TwoTemplates(processor, args.seed), processor.tokenizer
    # Commas and ends follow from the answer so far, "boot" from "ankle".
    uncounted = tokenizer.encode("a, b boot</s>", add_special_tokens=False)
    curve = CurveCallback(
        curriculum, Path(args.output_dir) / "curve.jsonl", collate, uncounted, args.data_folder, args.curve_steps
    )
    curve.resume(int(last_checkpoint.rpartition("-")[2]) if last_checkpoint else 0)
    trainer = LlavaTrainer(
        build_model(tokenizer, args),
        args,
        data_collator=collate,
        train_dataset=WideConversations(args, curriculum),
        processing_class=as_llava(processor),
        callbacks=[curve],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
