"""
Makes the LLaVA of train_llava.py elastic, in one of the ways that compare_elastic.py compares (minutes on two cores):

    OMP_WAIT_POLICY=passive python examples/fashion_mosaics/train_elastic.py --fit_steps 600 --distillation llava \
        --output_dir runs/elastic

Decoder and compressor learn, the vision tower stays as it is; with `--from_scratch true` all of them start at random.
Called again with the same folder, it goes on from the last checkpoint.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from compressors import CLASSES, make_elastic
from train import MosaicConversations, TinyTrainingArguments, collator
from train_llava import build_llava
from transformers import AutoTokenizer, HfArgumentParser, LlavaForConditionalGeneration, SchedulerType, set_seed

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from mqt_llava.training import MQTLlavaTrainer, ProjectorFitTrainer, fit_arguments, last_complete_checkpoint


@dataclass
class ElasticTrainingArguments(TinyTrainingArguments):
    output_dir: str = "runs/elastic"
    seed: int = 1  # the LLaVA has seen the mosaics of 0
    max_steps: int = 3000
    per_device_train_batch_size: int = 16  # a quarter of the LLaVA's learns as much with a quarter of the FLOPs
    learning_rate: float = 1e-3
    save_steps: int = 500
    lr_scheduler_type: str = "cosine"
    trained_parts: list[str] = field(default_factory=lambda: ["resampler", "language_model"])
    llava: str = field(default="model_cards/llava-tiny", metadata={"help": "Folder of the LLaVA."})
    compressor: str = field(default="queries", metadata={"help": f"One of {', '.join(CLASSES)}."})
    max_visual_tokens: int = field(default=16, metadata={"help": "M."})
    from_scratch: bool = field(default=False, metadata={"help": "Whether to take no weights of the LLaVA."})
    list_steps: int = field(default=0, init=False)
    position_steps: int = field(default=0, init=False)
    list_share: float = field(default=0, metadata={"help": "Of the steps, those that list alone, at M."})
    early_share: float = field(default=0, metadata={"help": "Of the steps, those with fine questions alone, at M."})
    fit_steps: int = field(default=0, metadata={"help": "Steps of stage 0, which fits queries to the projector."})
    fit_order: str = field(default="raster", metadata={"help": "Of the queries: raster or coarse_to_fine."})
    fit_levels: list[int] = field(
        default_factory=list, metadata={"help": "Numbers of tokens that stage 0 makes hold the whole image."}
    )
    fit_learning_rate: float = field(default=3e-3, metadata={"help": "Of stage 0."})

    def __post_init__(self):
        self.list_steps = int(self.list_share * self.max_steps)
        self.position_steps = int(self.early_share * self.max_steps)
        super().__post_init__()
        stable = self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY
        self.lr_scheduler_kwargs = {"num_decay_steps": self.max_steps // 4, "decay_type": "linear"} if stable else {}


def load(args: ElasticTrainingArguments) -> tuple[LlavaForConditionalGeneration, MQTLlavaProcessor]:
    """The LLaVA, or a new one like it, and the processor of what is made of it."""
    processor = MQTLlavaProcessor.from_llava(args.llava, max_visual_tokens=args.max_visual_tokens)
    if args.from_scratch:
        return build_llava(AutoTokenizer.from_pretrained(args.llava)), processor
    return LlavaForConditionalGeneration.from_pretrained(args.llava), processor


def fit_trainer(
    model: MQTLlavaForConditionalGeneration, llava, processor: MQTLlavaProcessor, args: ElasticTrainingArguments
) -> ProjectorFitTrainer:
    """Of stage 0, which sees other mosaics than those to come."""
    fit_args = fit_arguments(
        args,
        max_steps=args.fit_steps,
        learning_rate=args.fit_learning_rate,
        batch_size=args.per_device_train_batch_size,
    )
    dataset = MosaicConversations(copy.copy(args))
    dataset.args.seed, dataset.args.max_steps = args.seed + 1000, args.fit_steps
    return ProjectorFitTrainer(
        model, fit_args, teacher=llava, processor=processor, order=args.fit_order, levels=args.fit_levels,
        train_dataset=dataset,
    )  # fmt: skip


def build_trainers(args: ElasticTrainingArguments) -> tuple[ProjectorFitTrainer | None, Callable[[], MQTLlavaTrainer]]:
    """Of stage 0, if there is one, and what makes the one that comes after it."""
    llava, processor = load(args)
    heads = {"resampler_num_attention_heads": 8} if args.compressor == "queries" else {}
    model = make_elastic(llava, args.compressor, max_visual_tokens=args.max_visual_tokens, **heads)
    first = fit_trainer(model, llava, processor, args) if args.fit_steps else None

    def build_trainer() -> MQTLlavaTrainer:
        teacher = None
        if args.distillation == "llava":
            # The decoder learns in full, so its teacher needs weights of its own.
            teacher = LlavaForConditionalGeneration.from_pretrained(args.llava)
        dataset = MosaicConversations(args)
        return MQTLlavaTrainer(model, args, collator(processor, args), teacher=teacher, train_dataset=dataset)

    return first, build_trainer


def main(argv: list[str] | None = None):
    (args,) = HfArgumentParser(ElasticTrainingArguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    first, build_trainer = build_trainers(args)
    last_checkpoint = last_complete_checkpoint(args.output_dir)
    if first is not None and last_checkpoint is None:
        first.train()
        first.save_state()
    trainer = build_trainer()
    trainer.train(resume_from_checkpoint=last_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
