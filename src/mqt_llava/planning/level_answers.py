"""
Prompts, each answered greedily at every level of visual tokens: what calibration looks at.

What a killed run has answered is in its log, and is not computed again.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..files.json_lines import append_json_lines, read_json_lines
from ..models.adaptive_budget import best_logprobs, checkpoint_digest
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.processing_mqt_llava import MQTLlavaProcessor
from ..training.records import read_record


@dataclass(frozen=True)
class Question:
    """
    Args:
        id: Of its row, or a digest of its texts.
        messages: Up to the user's last, with the images in them.
        truth: The right answer, empty where the row ends without one.
        key: The same for the same texts and images.
    """

    id: str
    messages: list[dict]
    truth: str
    key: str


@dataclass
class LevelAnswers:
    """
    Args:
        levels: Visual tokens, ascending.
        texts: By question and level.
        logprobs: Of the likeliest two tokens at the first places of each answer: `(questions, levels, places, 2)`.
        has_ended: Whether the answer ends among these places: `(questions, levels)`.
    """

    levels: list[int]
    texts: list[list[str]]
    logprobs: torch.Tensor
    has_ended: torch.Tensor


def read_questions(rows: Iterable[dict], need_answers: bool) -> list[Question]:
    """
    Args:
        rows: Conversations as [`read_record`] reads them; without `need_answers` the last message may be the user's.

    Raises:
        ValueError: There are none, or some are not about images or lack an answer.
    """
    records = [read_record(row, needs_answer=need_answers) for row in rows]
    if not records:
        raise ValueError("`prompts` is empty: there is nothing to calibrate on.")
    bad = [one.id for one in records if not one.images or need_answers and one.messages[-1]["role"] != "assistant"]
    if bad:
        what = "questions about images with their answers" if need_answers else "questions about images"
        raise ValueError(f"`prompts` must hold {what}; {bad[:5]} are not.")
    questions = []
    for record in records:
        messages, truth = record.messages_with_images(), ""
        while messages[-1]["role"] == "assistant":
            truth = messages.pop()["content"][0]["text"]
        parts = [record.messages[: len(messages)], *map(image_key, record.images)]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        questions.append(Question(record.id, messages, truth, key))
    return questions


def image_key(image: Any) -> str:
    """A path itself, or a digest of pixels."""
    if isinstance(image, (str, Path)):
        return str(image)
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def answer_at_levels(
    model: MQTLlavaForConditionalGeneration,
    processor: MQTLlavaProcessor,
    questions: list[Question],
    levels: list[int],
    num_probed_tokens: int,
    batch_size: int,
    max_new_tokens: int,
    log: str | Path | None,
) -> LevelAnswers:
    """
    Answers each question at each level. Its image is encoded once.

    Args:
        log: A file to which each batch is added, and from which a run with the same arguments goes on.

    Raises:
        ValueError: The log is one of other questions, weights or settings.
    """
    start = {
        "checkpoint": checkpoint_digest(model),
        "questions": hashlib.sha256("".join(question.key for question in questions).encode()).hexdigest(),
        "levels": levels,
        "num_probed_tokens": num_probed_tokens,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    done = read_log(Path(log), start) if log is not None else []
    bar = logging.tqdm(total=len(questions), desc="calibrating", unit="prompt")
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        if first // batch_size == len(done):
            done.append(answer_batch(model, processor, batch, levels, num_probed_tokens, max_new_tokens))
            if log is not None:
                append_json_lines(Path(log), done[-1:] if first else [start, *done])
        bar.update(len(batch))
    bar.close()
    texts = [texts for batch in done for texts in batch["texts"]]
    logprobs, has_ended = (
        torch.tensor([of_question for batch in done for of_question in batch[name]])
        for name in ("logprobs", "has_ended")
    )
    return LevelAnswers(levels, texts, logprobs, has_ended)


def read_log(path: Path, start: dict) -> list[dict]:
    """The batches of a log that begins like this."""
    found, *batches = read_json_lines(path)[0] or [start]
    if found != start:
        differing = sorted(name for name in start if found.get(name) != start[name])
        raise ValueError(
            f"`log` is {path}, which holds answers of another calibration: {', '.join(differing)} differ. Pass "
            "another file, or remove this one."
        )
    return batches


@torch.no_grad()
def answer_batch(
    model: MQTLlavaForConditionalGeneration,
    processor: MQTLlavaProcessor,
    questions: list[Question],
    levels: list[int],
    num_probed_tokens: int,
    max_new_tokens: int,
) -> dict:
    """The fields of [`LevelAnswers`] by question and level, as a log holds them."""
    inputs = processor.apply_chat_template(
        [question.messages for question in questions],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    ).to(model.device)
    encoded = model.get_image_features(inputs.pop("pixel_values"))
    texts, logprobs, has_ended = [], [], []
    for level in levels:
        outputs: Any = model.generate(
            **inputs,
            mm_encoder_outputs={"image": encoded},
            num_visual_tokens=level,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        answers = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts.append(processor.batch_decode(answers, skip_special_tokens=True))
        seen = look_at(outputs.logits[:num_probed_tokens], num_probed_tokens, model.generation_config)
        logprobs.append(seen[0])
        has_ended.append(seen[1])
    return {
        "texts": [list(of_question) for of_question in zip(*texts)],
        "logprobs": torch.stack(logprobs, dim=1).tolist(),
        "has_ended": torch.stack(has_ended, dim=1).tolist(),
    }


def look_at(logits: tuple[torch.Tensor, ...], num_places: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a budget looks at, `(batch, places, 2)` and `(batch,)`: certainty where all answers had ended."""
    eos = torch.tensor([] if config.eos_token_id is None else config.eos_token_id, device=logits[0].device).flatten()
    has_ended, places = torch.zeros_like(logits[0][:, 0], dtype=torch.bool), []
    for step in logits:
        places.append(best_logprobs(step, has_ended))
        has_ended = has_ended | torch.isin(step.argmax(-1), eos)
    places += [best_logprobs(logits[-1], torch.ones_like(has_ended))] * (num_places - len(places))
    return torch.stack(places, dim=1).cpu(), has_ended.cpu()
