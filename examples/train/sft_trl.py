"""
TRL's SFTTrainer trains an MQT-LLaVA, at a number of visual tokens that is drawn for each batch:

    python examples/train/sft_trl.py --output_dir runs/sft

The example learns from the pictures in examples/images; `datasets.load_dataset` loads others with `messages` and
`images`.
"""

from dataclasses import dataclass, field

from pictures import REPOSITORY, load_pictures
from transformers import AutoProcessor
from trl import SFTConfig, SFTTrainer, TrlParser

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.training import BudgetCollator, LogBudget


@dataclass
class ScriptArguments:
    model: str = field(default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), metadata={"help": "Checkpoint."})


def main(argv: list[str] | None = None):
    script_args, args = TrlParser((ScriptArguments, SFTConfig)).parse_args_and_config(argv)
    args.remove_unused_columns = False
    model = MQTLlavaForConditionalGeneration.from_pretrained(script_args.model, dtype="float32")
    processor = AutoProcessor.from_pretrained(script_args.model)
    collator = BudgetCollator(
        processor, LogBudget(processor.max_visual_tokens), max_length=args.max_length, seed=args.seed
    )
    trainer = SFTTrainer(
        model,
        args,
        data_collator=collator,
        train_dataset=load_pictures(),
        processing_class=processor,
        callbacks=[collator.epoch_callback],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
