"""
PEFT: LoRA adapters on the decoder and the query transformer in full, then reloaded and merged into a plain checkpoint:

    python examples/train/lora_peft.py --output_dir runs/lora

`runs/lora` holds the adapter, `runs/lora/merged` a checkpoint like any other.
"""

from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from pictures import REPOSITORY, load_pictures
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.training import (
    BudgetCollator,
    ConversationDataset,
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    UniformBudget,
)
from mqt_llava.training.arguments import parse_arguments


@dataclass
class ScriptArguments:
    model: str = field(default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), metadata={"help": "Checkpoint."})


def main(argv: list[str] | None = None):
    script_args, args = parse_arguments(ScriptArguments, MQTLlavaTrainingArguments, argv=argv)
    processor = AutoProcessor.from_pretrained(script_args.model)
    model = MQTLlavaForConditionalGeneration.from_pretrained(script_args.model, dtype="float32")
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=r".*language_model.*(q|k|v|o|gate|up|down)_proj",
        modules_to_save=["resampler"],
    )
    trainer = MQTLlavaTrainer(
        get_peft_model(model, lora),
        args,
        BudgetCollator(processor, UniformBudget(1, processor.max_visual_tokens), seed=args.seed),
        train_dataset=ConversationDataset(load_pictures()),
    )
    trainer.train()
    trainer.save_model()

    model = MQTLlavaForConditionalGeneration.from_pretrained(script_args.model, dtype="float32")
    merged = PeftModel.from_pretrained(model, args.output_dir).merge_and_unload()
    merged.save_pretrained(Path(args.output_dir) / "merged")
    processor.save_pretrained(Path(args.output_dir) / "merged")


if __name__ == "__main__":
    main()
