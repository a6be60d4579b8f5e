"""
What it costs QueCC-LLaVA to know the question: time to the first token against MQT-LLaVA with as many visual tokens.

    python benchmarks/question_pass.py --size full --output benchmarks/results/question_pass.json

Both have random weights, and share a vision tower, of which both run the layers up to feature layer -2, and a decoder
of about a billion parameters. So what differs is the compressor, and that the decoder reads the question of each image
alone before it reads the prompt. A prompt is 40 text tokens, an image and the question, whose tokens are the ones that
are read alone too; prompts of a batch are equally long. One new token is generated, from pixels.

Everything is measured as in `first_token.py`. The FLOPs ratio is the prediction. The pass over the question is timed
by itself besides: it reads all weights of the decoder for few tokens, so it may take longer than its FLOPs say, above
all at batch size 1.
"""

import json
import random
from collections.abc import Callable
from functools import partial

import torch
from compared_models import TEXT_BEFORE, Size, answer_in_full, build_models, call_generate, decoder_of, join_prompt
from first_token import choose_dtype, measure, ratios
from harness import SEED, begin, command_line, save, spread, table

from mqt_llava import QueCCLlavaForConditionalGeneration


KERNEL_SIZES = {36: 4, 16: 6, 4: 12, 1: 24}  # of 24 x 24 patches, by visual tokens
CASES = ((1, 24), (1, 100), (4, 24))  # batch size and tokens of the question


class Models:
    """MQT-LLaVA and, by visual tokens, QueCC-LLaVA, around one vision tower and one decoder, and calls of them."""

    def __init__(self, size: Size):
        self.mqt, _ = build_models(size, "cpu")
        layers = size.vision[2]
        context_layers = [layers // 2, 2 * layers // 3, layers - 2, layers - 1]  # of 24: 12, 16, 22, 23
        self.quecc = {
            m: QueCCLlavaForConditionalGeneration.from_vision_text_pretrained(
                self.mqt.model.vision_tower,
                decoder_of(self.mqt),
                image_token_id=self.mqt.config.image_token_id,
                kernel_size=kernel_size,
                vision_context_layers=context_layers,
            )
            for m, kernel_size in KERNEL_SIZES.items()
        }
        for model in (self.mqt, *self.quecc.values()):
            answer_in_full(model)
        self.pixels = torch.randn(size.batch_size, 3, 336, 336, dtype=size.dtype)
        length = TEXT_BEFORE + max(question_tokens for _, question_tokens in CASES)
        self.text = torch.randint(1, self.mqt.config.image_token_id, (size.batch_size, length))

    def calls(self, batch: int, question_tokens: int) -> dict[str | tuple[str, int], Callable]:
        """`generate` of both models at each number of visual tokens, and the pass over the question alone."""
        text, pixels = self.text[:batch], self.pixels[:batch]
        before, question = text[:, :TEXT_BEFORE], text[:, TEXT_BEFORE : TEXT_BEFORE + question_tokens]
        query = {"query_input_ids": question, "query_attention_mask": torch.ones_like(question)}
        functions = {"question": partial(self.quecc[1].model.encode_questions, **query)}
        for m, quecc in self.quecc.items():
            ids = join_prompt(before, question, m, quecc)
            functions["mqt", m] = call_generate(self.mqt, ids, pixels, num_visual_tokens=m, max_new_tokens=1)
            functions["quecc", m] = call_generate(quecc, ids, pixels, **query, max_new_tokens=1)
        return functions


def compare_models(models: Models, rounds: int, rng: random.Random) -> list[dict]:
    rows = []
    for batch, question_tokens in CASES:
        figures = measure(models, models.calls(batch, question_tokens), rounds, rng)
        for m in KERNEL_SIZES:
            row = {"batch": batch, "question_tokens": question_tokens, "m": m}
            row |= ratios(figures["quecc", m], figures["mqt", m])
            row |= {"quecc": figures["quecc", m], "mqt": figures["mqt", m], "question": figures["question"]}
            rows.append(row)
    return rows


def report(rows: list[dict]) -> str:
    head = (
        "batch | question, tokens | m | QueCC-LLaVA / MQT-LLaVA, s | time ratio (rounds) | FLOPs ratio "
        "| time over prediction | question alone, s"
    )
    lines = [
        f"{row['batch']} | {row['question_tokens']} | {row['m']} "
        f"| {row['quecc']['median']:.3f} / {row['mqt']['median']:.3f} | {spread(row, 'time_ratio')} "
        f"| {row['flops_ratio']:.3f} | {row['time_over_prediction']:.3f} | {row['question']['median']:.3f}"
        for row in rows
    ]
    return table(head, lines)


def main() -> None:
    args = command_line(
        __doc__,
        size={"choices": ("small", "full"), "default": "small"},
        rounds={"help": "by default what the size says"},
        dtype={"help": "by default the faster one"},
        threads={},
    ).parse_args()
    result = begin(args, text_before=TEXT_BEFORE)
    size, noted = choose_dtype(args)
    result |= noted
    print(json.dumps(result), flush=True)
    result["rows"] = compare_models(Models(size), result["rounds"], random.Random(SEED))
    print(report(result["rows"]))
    save(result, args.output, report(result["rows"]))


if __name__ == "__main__":
    main()
