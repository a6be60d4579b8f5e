r"""
Stage 1: teaches a new compressor to speak to a decoder, on images and their captions.

    accelerate launch --config_file examples/train/accelerate/ddp.yaml \
        examples/train/pretrain.py examples/train/pretrain_7b.yaml --output_dir runs/pretrain

Only the compressor is trained, and saved: `trained_parts.safetensors`. Called again with the same folder, it
goes on from the last checkpoint.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from mqt_llava.training import (
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    build_collator,
    last_complete_checkpoint,
)
from mqt_llava.training.arguments import DataArguments, ModelArguments, parse_arguments
from mqt_llava.training.assemble import load_conversations, load_model_and_processor, load_teacher, read_chat_template


@dataclass
class PretrainingArguments(MQTLlavaTrainingArguments):
    trained_parts: list[str] = field(default_factory=lambda: ["resampler"])


def main(argv: list[str] | None = None):
    model_args, data_args, args = parse_arguments(ModelArguments, DataArguments, PretrainingArguments, argv=argv)
    set_seed(args.seed)
    model, processor = load_model_and_processor(model_args)
    collator = build_collator(
        processor,
        data_args.budget,
        is_stage_1=True,
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
