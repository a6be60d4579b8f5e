"""
What it costs QueCC-LLaVA to know the question: time to the first token against MQT-LLaVA with as many visual tokens.

    python benchmarks/question_pass.py --size full --output benchmarks/results/question_pass.json

Both have random weights, and share a vision tower, of which both run the layers up to feature layer -2, and a decoder
of about a billion parameters. So what differs is the compressor, and that the decoder reads the question of each image
alone before it reads the prompt. A prompt is 40 text tokens, an image and the question, whose tokens are the ones that
are read alone too; prompts of a batch are equally long. One new token is generated, from pixels.

Everything is measured as in `first_token.py`: in one process, in rounds of all calls in random order; medians, ratios
of the medians, and the least and greatest ratio of one round; FLOPs counted on the real call. The FLOPs ratio is the
prediction. The pass over the question is timed by itself besides: it reads all weights of the decoder for few tokens,
so it may take longer than its FLOPs say, above all at batch size 1.
"""

import argparse
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from first_token import SIZES, TEXT_BEFORE, fastest_dtype, measure, ratios
from training_step import Size, build_models, hardware
from transformers import LlamaForCausalLM

from mqt_llava import QueCCLlavaForConditionalGeneration


KERNEL_SIZES = {36: 4, 16: 6, 4: 12, 1: 24}  # of 24 x 24 patches, by visual tokens
CASES = ((1, 24), (1, 100), (4, 24))  # batch size and tokens of the question


class Models:
    """MQT-LLaVA and, by visual tokens, QueCC-LLaVA, around one vision tower and one decoder, and calls of them."""

    def __init__(self, size: Size):
        self.image_token_id = size.vocabulary - 1
        self.mqt, _ = build_models(size, "cpu")
        layers = size.vision[2]
        context_layers = [layers // 2, 2 * layers // 3, layers - 2, layers - 1]  # of 24: 12, 16, 22, 23
        with torch.device("meta"):
            decoder = LlamaForCausalLM(self.mqt.config.text_config)
        decoder.model, decoder.lm_head = self.mqt.model.language_model, self.mqt.lm_head
        self.quecc = {
            m: QueCCLlavaForConditionalGeneration.from_vision_text_pretrained(
                self.mqt.model.vision_tower,
                decoder,
                image_token_id=self.image_token_id,
                kernel_size=kernel_size,
                vision_context_layers=context_layers,
            )
            for m, kernel_size in KERNEL_SIZES.items()
        }
        for model in (self.mqt, *self.quecc.values()):
            model.eval().generation_config.update(do_sample=False, eos_token_id=None, pad_token_id=0)
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(size.batch_size, 3, 336, 336, generator=generator).to(size.dtype)
        length = TEXT_BEFORE + max(question_tokens for _, question_tokens in CASES)
        self.text = torch.randint(1, self.image_token_id, (size.batch_size, length), generator=generator)

    def calls(self, batch: int, question_tokens: int) -> dict[str | tuple[str, int], Callable]:
        """`generate` of both models at each number of visual tokens, and the pass over the question alone."""
        text, pixels = self.text[:batch], self.pixels[:batch]
        before, question = text[:, :TEXT_BEFORE], text[:, TEXT_BEFORE : TEXT_BEFORE + question_tokens]
        query = {"query_input_ids": question, "query_attention_mask": torch.ones_like(question)}
        functions = {"question": partial(self.quecc[1].model.encode_questions, **query)}
        for m, quecc in self.quecc.items():
            ids = torch.cat([before, before.new_full((batch, m), self.image_token_id), question], dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
            functions["mqt", m] = partial(self.mqt.generate, **inputs, num_visual_tokens=m, max_new_tokens=1)
            functions["quecc", m] = partial(quecc.generate, **inputs, **query, max_new_tokens=1)
        return functions


def compare(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch, question_tokens in CASES:
        figures = measure(models, models.calls(batch, question_tokens), rounds, rng)
        for m in KERNEL_SIZES:
            row = {"batch": batch, "question_tokens": question_tokens, "m": m}
            row |= ratios(figures["quecc", m], figures["mqt", m])
            row["time_over_prediction"] = round(row["time_ratio"] / row["flops_ratio"], 4)
            row |= {"quecc": figures["quecc", m], "mqt": figures["mqt", m], "question": figures["question"]}
            rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """The comparison as Markdown."""
    head = (
        "batch | question, tokens | m | QueCC-LLaVA / MQT-LLaVA, s | time ratio (rounds) | FLOPs ratio "
        "| time over prediction | question alone, s"
    )
    lines = [head, " | ".join(["---"] * (head.count("|") + 1))]
    for row in rows:
        low, high = row["time_ratio_by_round"]
        lines.append(
            f"{row['batch']} | {row['question_tokens']} | {row['m']} "
            f"| {row['quecc']['median']:.3f} / {row['mqt']['median']:.3f} "
            f"| {row['time_ratio']:.3f} ({low:.3f} to {high:.3f}) | {row['flops_ratio']:.3f} "
            f"| {row['time_over_prediction']:.3f} | {row['question']['median']:.3f}"
        )
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--repeats", type=int, help="rounds; by default what the size says")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="by default the faster one")
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(args.threads or cores)
    torch.manual_seed(0)
    size = SIZES[args.size]
    faster, seconds = fastest_dtype(size)
    size = replace(size, dtype=getattr(torch, args.dtype) if args.dtype else faster)
    rounds = args.repeats or size.rounds

    result = {
        "size": args.size, **hardware("cpu"), "threads": torch.get_num_threads(), "seed": 0, "rounds": rounds,
        "dtype": str(size.dtype), "matrix_product_seconds": seconds, "text_before": TEXT_BEFORE,
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    result["rows"] = compare(Models(size), rounds, random.Random(0))
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    print(table(result["rows"]))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
