"""Conversations to batches for a QueCC-LLaVA, whose images go along with the question that they are encoded for."""

from typing import Any

import torch

from ..models.processing_quecc_llava import QueCCLlavaProcessor
from .budgets import FixedBudget
from .collator import BudgetCollator


class QuestionCollator(BudgetCollator):
    """
    A [`BudgetCollator`] without a choice of m: every image has the visual tokens that the model is built for.

    The question of an image is the first one behind it, as in inference, so a template without questions
    ([`PLAIN_TEMPLATE`]) does not do: stage 1 takes the processor's own.

    Args:
        processor: Of the model.
        chat_template, max_length, seed: As of a [`BudgetCollator`].
    """

    def __init__(self, processor: QueCCLlavaProcessor, **kwargs: Any):
        super().__init__(processor, FixedBudget(processor.max_visual_tokens), **kwargs)
        self.blank_num_visual_tokens = processor.max_visual_tokens

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        """
        As of a [`BudgetCollator`], with `query_input_ids` and `query_attention_mask` `(images, length)` in place of
        `visual_token_counts`.
        """
        batch = super().__call__(rows)
        del batch["visual_token_counts"]
        return batch

    def tokenize(self, conversations: list[list[dict]]) -> dict:
        batch = self.apply_template(conversations)
        for row, ids in enumerate(batch["input_ids"]):
            # Of each image's placeholders one stays, and is repeated again.
            is_image = torch.tensor(ids) == self.processor.image_token_id
            is_kept = ~is_image | (is_image.cumsum(0) % self.processor.max_visual_tokens == 0)
            for name in ("input_ids", "assistant_masks"):
                batch[name][row] = torch.tensor(batch[name][row])[is_kept].tolist()
        if "pixel_values" in batch:
            batch["pixel_values"] = torch.stack([torch.as_tensor(pixels) for pixels in batch["pixel_values"]])
            for name in ("query_input_ids", "query_attention_mask"):
                batch[name] = torch.tensor(batch[name])
        return batch

    @property
    def blank_image(self) -> dict[str, torch.Tensor]:
        question = torch.ones(1, 1, dtype=torch.long)
        return {**super().blank_image, "query_input_ids": question, "query_attention_mask": question}
