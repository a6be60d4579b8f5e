"""
What calibration costs beside the answers that it needs: `calibrate` against plain `generate` at every level.

    python benchmarks/calibration_time.py --rounds 3 --threads 1 --output benchmarks/results/calibration_time.json

Both answer the same prompts of the embedded checkpoint in the same batches, each at every level once. Plain `generate`
gets each batch from the processor once, and nothing is asked of it but the answers.
"""

import json
import random
from pathlib import Path

import torch
from harness import REPOSITORY, SEED, begin, command_line, compare, save, spread, table, take_turns, time_call
from PIL import Image, ImageChops
from transformers import AutoProcessor

from mqt_llava import EMBEDDED_CHECKPOINT, AdaptiveBudget, MQTLlavaForConditionalGeneration
from mqt_llava.planning import calibrate


PICTURES = REPOSITORY / "examples" / "images"
BATCH_SIZE, NEW_TOKENS = 50, 80


def draw_prompts(number: int) -> list[dict]:
    """The demo's questions about its mosaics, each mosaic shifted so that no two pictures are alike."""
    asked = json.loads((PICTURES / "questions.json").read_text())
    pairs = [(name, question) for name, answers in asked.items() for question, _ in answers]
    rng, prompts = random.Random(SEED), []
    for name, question in rng.choices(pairs, k=number):
        image = ImageChops.offset(Image.open(PICTURES / name).convert("RGB"), rng.randrange(112), rng.randrange(112))
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompts.append({"messages": [{"role": "user", "content": content}], "images": [image]})
    return prompts


def answer(model, processor, prompts: list[dict], levels: list[int]) -> None:
    for start in range(0, len(prompts), BATCH_SIZE):
        chats = []
        for prompt in prompts[start : start + BATCH_SIZE]:
            (message,), (image,) = prompt["messages"], prompt["images"]
            chats.append([{**message, "content": [{"type": "image", "image": image}, message["content"][1]]}])
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        )  # fmt: skip
        for level in levels:
            output = model.generate(**inputs, num_visual_tokens=level, max_new_tokens=NEW_TOKENS, do_sample=False)
            processor.batch_decode(output, skip_special_tokens=True)


def main() -> None:
    parser = command_line(__doc__, rounds={"default": 3}, threads={"default": 1})
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--log", type=Path, help="file that calibration writes its answers to, anew in each round")
    args = parser.parse_args()
    result = begin(args, size="tiny", prompts=args.prompts, batch_size=BATCH_SIZE, max_new_tokens=NEW_TOKENS)
    model = MQTLlavaForConditionalGeneration.from_pretrained(EMBEDDED_CHECKPOINT, dtype=torch.float32).eval()
    processor, prompts = AutoProcessor.from_pretrained(EMBEDDED_CHECKPOINT), draw_prompts(args.prompts)
    levels = AdaptiveBudget().levels_for(model.config.max_visual_tokens)

    def run_calibration() -> None:
        if args.log:
            args.log.unlink(missing_ok=True)
        settings = {"num_probed_tokens": 8, "batch_size": BATCH_SIZE, "max_new_tokens": NEW_TOKENS, "log": args.log}
        calibrate(model, processor, prompts, risk=0.05, **settings)

    calls = {"calibrate": run_calibration, "answer": lambda: answer(model, processor, prompts, levels)}
    timed = {name: lambda call=call: time_call(call) for name, call in calls.items()}
    seconds = take_turns(timed, args.rounds, random.Random(SEED))
    result |= {"levels": levels, "seconds": seconds, **compare("ratio", seconds["calibrate"], seconds["answer"])}
    lines = [
        f"{args.prompts} | {min(seconds['calibrate']):.1f} | {min(seconds['answer']):.1f} | {spread(result, 'ratio')}"
    ]
    markdown = table("prompts | calibrate, least s | answers alone, least s | ratio of medians (rounds)", lines)
    print(markdown)
    save(result, args.output, markdown)


if __name__ == "__main__":
    main()
