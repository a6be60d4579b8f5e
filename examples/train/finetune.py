r"""
Stage 2: teaches compressor and language model to answer; a query transformer at a number of visual tokens that is
drawn for each batch.

    accelerate launch --config_file examples/train/accelerate/fsdp2.yaml \
        examples/train/finetune.py examples/train/finetune_7b.yaml \
        --trained_parts_from runs/pretrain --output_dir runs/finetune

With `--lora_rank 64` the language model learns through LoRA adapters, with `--load_in_4bit true` beside weights in 4
bits (QLoRA). Called again with the same folder, it goes on from the last checkpoint.
"""

from dataclasses import dataclass, field

import torch
from transformers import BitsAndBytesConfig, set_seed

from mqt_llava.training import (
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    build_collator,
    last_complete_checkpoint,
)
from mqt_llava.training.arguments import DataArguments, ModelArguments, parse_arguments
from mqt_llava.training.assemble import load_conversations, load_model_and_processor, load_teacher, read_chat_template


@dataclass
class LoraArguments:
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 trains the weights themselves."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters, times the rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout in front of the adapters."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Whether the language model is held in 4 bits."})

    def __post_init__(self):
        if self.load_in_4bit and not self.lora_rank:
            raise ValueError("`load_in_4bit` is True: weights in 4 bits learn through adapters, so set `lora_rank`.")


def in_4bit(connector: str) -> BitsAndBytesConfig:
    """The decoder in 4 bits, but not what stands in front of it: vision tower and connector, and not the head."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["model.vision_tower", f"model.{connector}", "lm_head"],
    )


def add_adapters(model, args: LoraArguments, trained_parts: list[str]):
    """LoRA on every linear layer of the decoder; the compressor is small and learns in full."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if args.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.language_model.")
    ]
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=linear,
        modules_to_save=["resampler"] if "resampler" in trained_parts else None,
    )
    return get_peft_model(model, config)


def main(argv: list[str] | None = None):
    model_args, data_args, lora_args, args = parse_arguments(
        ModelArguments, DataArguments, LoraArguments, MQTLlavaTrainingArguments, argv=argv
    )
    set_seed(args.seed)
    quantization = {"quantization_config": in_4bit("resampler")} if lora_args.load_in_4bit else {}
    model, processor = load_model_and_processor(model_args, **quantization)
    if lora_args.lora_rank:
        model = add_adapters(model, lora_args, args.trained_parts)
    collator = build_collator(
        processor,
        data_args.budget,
        chat_template=read_chat_template(data_args),
        max_length=data_args.max_length,
        seed=args.seed,
    )
    dataset, teacher = load_conversations(data_args), load_teacher(model_args)
    trainer = MQTLlavaTrainer(model, args, collator, teacher=teacher, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()


if __name__ == "__main__":
    main()
