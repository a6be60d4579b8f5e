"""
Conversations to batches, at a number of visual tokens that is drawn for each batch.

A prompt is tokenised with one placeholder per image, which is then repeated m times: so one text serves
every m, and cutting it to a length never cuts an image.
"""

import logging
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerState

from ..models.processing_compressed_llava import CompressedLlavaProcessor
from .budgets import BudgetSampler
from .distillation import IGNORED
from .event_counts import EventCounts
from .records import read_record


logger = logging.getLogger(__name__)

PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- for block in message['content'] -%}
{%- if message['role'] == 'user' and block['type'] == 'image' -%}{{ '<image>' }}
{%- elif message['role'] == 'assistant' and block['type'] == 'text' -%}
{% generation %}{{ block['text'] | replace('<image>', '< image>') + '\n' }}{% endgeneration %}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
"""
"""Chat template of LLaVA's stage 1: an image and its caption, without the request for one."""


class BudgetCollator:
    """
    Makes a batch of conversations, all at the number of visual tokens m that is drawn for it.

    Labels are the answers and what the template ends them with (`</s>`); never visual tokens. Works with transformers'
    `Trainer`, with TRL's `SFTTrainer` and with PEFT: pass [`~BudgetCollator.epoch_callback`] to their `callbacks`.

    Args:
        processor: Its tokenizer must be a fast one, and its template mark answers with `{% generation %}`.
        budget: How m is drawn. With several samplers a batch is learned at several m at once, for which
            [`MQTLlavaTrainer`] encodes the images once.
        chat_template: The processor's own by default; [`PLAIN_TEMPLATE`] for stage 1.
        max_length: Tokens that a conversation can have, its visual tokens included. What is longer loses its end, and
            images that do not fit whole with it; that is counted in `event_counts`. A teacher reads all that is left,
            however many visual tokens it has.
        seed: Enters the draw of m, beside the epoch and the ids of the records.

    Raises:
        ValueError: A budget above the processor's `max_visual_tokens`, or none, or a template that marks no answers.
    """

    blank_num_visual_tokens = 1

    def __init__(
        self,
        processor: CompressedLlavaProcessor,
        budget: BudgetSampler | Sequence[BudgetSampler],
        *,
        chat_template: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ):
        self.samplers = [budget] if isinstance(budget, BudgetSampler) else list(budget)
        if not self.samplers:
            raise ValueError("`budget` is empty, but must be a sampler, or a list of some.")
        for sampler in self.samplers:
            if sampler.largest > processor.max_visual_tokens:
                raise ValueError(
                    f"`budget` draws up to {sampler.largest} visual tokens, but the processor's `max_visual_tokens` "
                    f"is {processor.max_visual_tokens}."
                )
        self.processor = processor
        self.chat_template = str(chat_template or processor.chat_template)
        if not re.search(r"\{%-?\s*generation\s*-?%\}", self.chat_template):
            raise ValueError("`chat_template` must mark the answers with {% generation %} ... {% endgeneration %}.")
        if max_length is not None and max_length < 1:
            raise ValueError(f"`max_length` is {max_length}, but must be at least 1.")
        self.max_length, self.seed = max_length, seed
        # Captions of stage 1 end with a line, as the original's do.
        self.expects_ends = self.chat_template != PLAIN_TEMPLATE and processor.tokenizer.eos_token_id is not None
        # Of an image to a teacher, which MQTLlavaTrainer tells; None where there is none with prompts of its own.
        self.teacher_num_visual_tokens: int | None = None
        self.event_counts = EventCounts("conversations", "truncated_conversations", "conversations_without_answer")
        # In shared memory, so that data workers that outlive an epoch see it.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self.epoch_callback = EpochCallback(self.epoch)

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        """
        Args:
            rows: Items of a [`ConversationDataset`], or other rows that [`read_record`] knows.

        Returns:
            `input_ids`, `attention_mask` and `labels` `(batch, length)`, `pixel_values` and `visual_token_counts` of
            the images. With several samplers, these are at the largest m, and `nested` is a list of such dicts without
            `pixel_values` for the others. Where the training has a teacher, `teacher` is such a dict for it, without
            counts; for text alone, without images.
        """
        records = [read_record(row) for row in rows]
        drawn = self.draw_num_visual_tokens([record.id for record in records])
        batch = self.tokenize([record.messages_with_images() for record in records])
        self._check_ends(batch)
        texts, kept_placeholders = [], []
        for record, ids, is_answer in zip(records, batch["input_ids"], batch["assistant_masks"]):
            ids, is_answer = torch.tensor(ids), torch.tensor(is_answer, dtype=torch.bool)
            kept = self._count_kept(record.id, ids, is_answer, drawn[-1])
            texts.append((ids[:kept], is_answer[:kept]))
            kept_placeholders.append((torch.arange(len(ids)) < kept)[ids == self.processor.image_token_id])

        is_kept = torch.cat(kept_placeholders)
        is_blank = not is_kept.any()
        if is_blank:
            # Every process runs every part of the model, or those that wait for its gradients wait forever. So text
            # alone is followed by a blank image, where nothing sees it.
            images, drawn = self.blank_image, [self.blank_num_visual_tokens] * len(drawn)
        else:
            images = {name: batch[name][is_kept] for name in self.blank_image}
        *nested, largest = [self._build_prompts(texts, num_visual_tokens, is_blank) for num_visual_tokens in drawn]
        if nested:
            largest["nested"] = nested
        if self.teacher_num_visual_tokens is not None:
            largest["teacher"] = self._build_prompts(texts, self.teacher_num_visual_tokens, is_blank=False)
            del largest["teacher"]["visual_token_counts"]
        return {**largest, **images}

    def tokenize(self, conversations: list[list[dict]]) -> dict:
        """
        Conversations as `input_ids` and `assistant_masks`, lists with one placeholder per image, and their images as
        tensors.
        """
        batch = self.apply_template(conversations, num_visual_tokens=1)
        if "pixel_values" in batch:
            batch["pixel_values"] = torch.stack([torch.as_tensor(pixels) for pixels in batch["pixel_values"]])
        return batch

    def apply_template(self, conversations: list[list[dict]], **processor_kwargs: Any) -> dict:
        return self.processor.apply_chat_template(
            conversations,
            chat_template=self.chat_template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": False, **processor_kwargs},
        )

    def _check_ends(self, batch: dict) -> None:
        """Says once that no answer ends with what ends an answer; the templates of released LLaVAs leave it out."""
        if not self.expects_ends:
            return
        eos_token_id = self.processor.tokenizer.eos_token_id
        pairs = [pair for ids, mask in zip(batch["input_ids"], batch["assistant_masks"]) for pair in zip(ids, mask)]
        if (eos_token_id, 1) not in pairs:
            logger.warning(
                "No answer ends with %r, so the model does not learn where to stop. Pass a `chat_template` that "
                "writes it within {%% generation %%}, such as examples/train/llava_1_5.jinja.",
                self.processor.tokenizer.eos_token,
            )
        self.expects_ends = False

    def draw_num_visual_tokens(self, record_ids: list[str]) -> list[int]:
        """
        The numbers of visual tokens that a batch of these records is learned at in this epoch, one for each sampler,
        ascending. They may be the same: every process must make as many passes.
        """
        epoch = int(self.epoch)
        return sorted(sampler(self.seed + number, epoch, record_ids) for number, sampler in enumerate(self.samplers))

    def _count_kept(self, record_id: str, ids: torch.Tensor, is_answer: torch.Tensor, num_visual_tokens: int) -> int:
        """How much of a text with one placeholder per image fits into `max_length` once those are repeated."""
        self.event_counts.add("conversations")
        lengths = torch.where(ids == self.processor.image_token_id, num_visual_tokens, 1).cumsum(0)
        kept = len(ids) if self.max_length is None else int((lengths <= self.max_length).sum())
        if kept < len(ids):
            self.event_counts.add("truncated_conversations")
        if not is_answer[:kept].any():
            self.event_counts.add("conversations_without_answer")
            logger.warning(
                "Record %r teaches nothing: its %d tokens have no answer within `max_length` (%s).",
                record_id, int(lengths[-1]), self.max_length,
            )  # fmt: skip
        return kept

    def _build_prompts(self, texts: list[tuple], num_visual_tokens: int, is_blank: bool) -> dict[str, Any]:
        """The texts at one m, padded on the right."""
        image_token_id = self.processor.image_token_id
        columns: dict[str, list[torch.Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
        counts = []
        for ids, is_answer in texts:
            is_image = ids == image_token_id
            repeats = torch.where(is_image, num_visual_tokens, 1)
            columns["input_ids"].append(ids.repeat_interleave(repeats))
            columns["labels"].append(ids.where(is_answer, IGNORED).repeat_interleave(repeats))
            columns["attention_mask"].append(torch.ones(int(repeats.sum()), dtype=torch.long))
            counts += [num_visual_tokens] * int(is_image.sum())
        if is_blank:
            blank = {"input_ids": image_token_id, "attention_mask": 0, "labels": IGNORED}
            lengths = [len(ids) for ids, _ in texts]
            shortest = lengths.index(min(lengths))  # where there is padding, if anywhere
            for name, rows in columns.items():
                rows[shortest] = torch.cat([rows[shortest], torch.tensor([blank[name]] * num_visual_tokens)])
            counts = [num_visual_tokens]
        pad_token_id = self.processor.tokenizer.pad_token_id
        pad_values = {"input_ids": pad_token_id or 0, "attention_mask": 0, "labels": IGNORED}
        prompts = {
            name: pad_sequence(rows, batch_first=True, padding_value=pad_values[name])
            for name, rows in columns.items()
        }
        return {**prompts, "visual_token_counts": torch.tensor(counts)}

    @cached_property
    def blank_image(self) -> dict[str, torch.Tensor]:
        return blank_image(self.processor)


def blank_image(processor: CompressedLlavaProcessor) -> dict[str, torch.Tensor]:
    """What a batch holds of images, for one that shows nothing."""
    return dict(processor.image_processor(Image.new("RGB", (8, 8)), return_tensors="pt"))


class EpochCallback(TrainerCallback):
    """Tells a collator which epoch has begun."""

    def __init__(self, epoch: torch.Tensor):
        self.epoch = epoch

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.epoch.fill_(int(state.epoch or 0))
