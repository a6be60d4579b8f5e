"""
Accuracy by kind of question and number of visual tokens, on mosaics of the official test items:

    OMP_NUM_THREADS=1 python examples/fashion_mosaics/evaluate.py --model model_cards/mqt-llava-tiny

A query transformer encodes each image once, with all its tokens, and every number of tokens answers from those. What
stands in for one (compressors.py) encodes an image for each number. QueCC and LLaVA have one number of tokens.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from compressors import CLASSES
from mosaics import DATASET_FOLDER, QUESTION_KINDS, to_messages
from testbeds import TESTBEDS
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.files.atomic_file import write_atomically


BATCH_SIZE = 100


def score(kind: str, answer: str, truth: str) -> float:
    """1 for the right answer; for listings the share of items that are right, place by place."""
    answer, truth = answer.strip(), truth.strip()
    if kind not in ("row", "column", "list"):
        return float(answer == truth)
    answers, truths = answer.split(", "), truth.split(", ")
    return sum(given == right for given, right in zip(answers, truths)) / len(truths)


def is_elastic(model) -> bool:
    return model.config.model_type == "mqt_llava"


def load(folder: str, compressor: str):
    """By a name in compressors.py, or a LLaVA or QueCC-LLaVA as its configuration says."""
    if AutoConfig.from_pretrained(folder).model_type != "mqt_llava":
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return CLASSES[compressor].from_pretrained(folder, dtype=torch.float32)


def only_number(model) -> int:
    """Of visual tokens, where there is no choice."""
    return model.config.image_seq_length if model.config.model_type == "llava" else model.config.num_visual_tokens


@torch.inference_mode()
def accuracies(
    model, processor, mosaics: list, kind: str, questions: list, budgets: list[int]
) -> dict[int, list[float]]:
    """The score of each question at each number of visual tokens."""
    scores = {budget: [] for budget in budgets}
    for start in range(0, len(questions), BATCH_SIZE):
        batch = questions[start : start + BATCH_SIZE]
        chats = [to_messages(mosaics[index].image, [pair])[:1] for index, pair in batch]
        inputs = processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        inputs = inputs.to(model.device)
        if type(model) is MQTLlavaForConditionalGeneration:
            encoded = model.get_image_features(inputs.pop("pixel_values"))
            inputs["mm_encoder_outputs"] = {"image": encoded}
        for budget in budgets:
            choice = {"num_visual_tokens": budget} if is_elastic(model) else {}
            generated = model.generate(**inputs, **choice, max_new_tokens=5 * mosaics[0].side ** 2)
            answers = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            scores[budget] += [score(kind, answer, truth) for answer, (_, (_, truth)) in zip(answers, batch)]
    return scores


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/mqt-llava-tiny")
    parser.add_argument(
        "--num-visual-tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="of a query transformer"
    )
    parser.add_argument("--compressor", choices=CLASSES, default="queries", help="of a model of train_elastic.py")
    parser.add_argument("--testbed", choices=TESTBEDS, default="mosaics")
    parser.add_argument("--kinds", nargs="+", choices=QUESTION_KINDS, default=list(QUESTION_KINDS))
    parser.add_argument("--mosaics", type=int, default=1000, help="held-out mosaics, with one question of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args(argv)

    model = load(args.model, args.compressor).eval().to(args.device)
    if not is_elastic(model):
        args.num_visual_tokens = [only_number(model)]
    processor = AutoProcessor.from_pretrained(args.model)
    rng, testbed = random.Random(args.seed), TESTBEDS[args.testbed]
    items = testbed.load_items("t10k", args.data_folder)
    mosaics = [testbed.draw_mosaic(rng, items) for _ in range(args.mosaics)]

    results = {}
    print(f"| question | {' | '.join(f'm = {budget}' for budget in args.num_visual_tokens)} | questions |")
    print(f"|---|{'---|' * (len(args.num_visual_tokens) + 1)}")
    for kind in args.kinds:
        ask = testbed.QUESTION_KINDS[kind]
        questions = [(index, pair) for index, mosaic in enumerate(mosaics) for pair in ask(rng, mosaic, 1)]
        if not questions:  # of few mosaics none may show clearly most of anything
            continue
        scores = accuracies(model, processor, mosaics, kind, questions, args.num_visual_tokens)
        means = {budget: sum(values) / len(values) for budget, values in scores.items()}
        results[kind] = {"grain": testbed.GRAIN.get(kind, "fine"), "questions": len(questions), "accuracy": means}
        print(f"| {kind} | {' | '.join(f'{mean:.3f}' for mean in means.values())} | {len(questions)} |", flush=True)
    if args.output:
        text = json.dumps({"arguments": vars(args), "results": results}, indent=1) + "\n"
        write_atomically(Path(args.output), text)  # that it is there says that the evaluation is finished
    return results


if __name__ == "__main__":
    main()
