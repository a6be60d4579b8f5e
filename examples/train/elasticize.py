r"""
Makes a LLaVA elastic: it answers at any number of visual tokens up to M, with the LLaVA itself as its teacher.

    accelerate launch --config_file examples/train/accelerate/ddp.yaml \
        examples/train/elasticize.py examples/train/elasticize_7b.yaml --llava_name_or_path llava-hf/llava-1.5-7b-hf

Stage 0 fits the new query transformer to the LLaVA's projector, without the decoder; it logs to `fit` in the output
folder. Then query transformer and adapters of the decoder learn what the LLaVA says of all its tokens. The LLaVA is
held once: vision tower and decoder are the model's own. Called again with the same folder, it goes on from the last
checkpoint. The whole model, adapters merged, ends up in `model` there, but for a decoder in 4 bits.
"""

from pathlib import Path

from finetune import LoraArguments, add_adapters, in_4bit
from transformers import set_seed

from mqt_llava.training import (
    MQTLlavaTrainer,
    MQTLlavaTrainingArguments,
    ProjectorFitTrainer,
    build_collator,
    fit_arguments,
    last_complete_checkpoint,
)
from mqt_llava.training.arguments import DataArguments, ElasticArguments, parse_arguments
from mqt_llava.training.assemble import load_conversations, load_elastic, read_chat_template


def main(argv: list[str] | None = None):
    elastic_args, data_args, lora_args, args = parse_arguments(
        ElasticArguments, DataArguments, LoraArguments, MQTLlavaTrainingArguments, argv=argv
    )
    learns_in_full = "language_model" in args.trained_parts and not lora_args.lora_rank
    if args.distillation == "llava" and learns_in_full:
        raise ValueError(
            "`trained_parts` names language_model and `lora_rank` is 0: the decoder would change the LLaVA that it "
            "learns from. Set `lora_rank`, or leave it out of `trained_parts`."
        )
    set_seed(args.seed)
    quantization = {"quantization_config": in_4bit("multi_modal_projector")} if lora_args.load_in_4bit else {}
    llava, model, processor = load_elastic(elastic_args, **quantization)
    if args.bf16:
        # What is new learns in float32: a step is too small to move its layer norms in bfloat16.
        model.model.resampler.float()
    template = read_chat_template(data_args)
    collator = build_collator(
        processor, data_args.budget, chat_template=template, max_length=data_args.max_length, seed=args.seed
    )
    dataset, last_checkpoint = load_conversations(data_args), last_complete_checkpoint(args.output_dir)
    if elastic_args.fit_steps and last_checkpoint is None:
        stage_0 = ProjectorFitTrainer(
            model,
            fit_arguments(
                args,
                max_steps=elastic_args.fit_steps,
                learning_rate=elastic_args.fit_learning_rate,
                batch_size=elastic_args.fit_batch_size,
            ),
            teacher=llava,
            processor=processor,
            order=elastic_args.fit_order,
            levels=elastic_args.fit_levels,
            train_dataset=dataset,
        )
        stage_0.train()
        stage_0.save_state()
        del stage_0  # and the memory of its optimizer
    if lora_args.lora_rank:
        model = add_adapters(model, lora_args, args.trained_parts)
    teacher = llava if args.distillation == "llava" else None
    trainer = MQTLlavaTrainer(model, args, collator, teacher=teacher, train_dataset=dataset)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError("The model that is saved would be in pieces: run this with DDP or in one process.")
    trainer.train(resume_from_checkpoint=last_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero() and not lora_args.load_in_4bit:
        whole = model.merge_and_unload() if lora_args.lora_rank else model
        whole.to(llava.dtype).save_pretrained(Path(args.output_dir) / "model")
        processor.chat_template = template or processor.chat_template
        processor.save_pretrained(Path(args.output_dir) / "model")


if __name__ == "__main__":
    main()
