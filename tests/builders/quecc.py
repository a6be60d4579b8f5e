"""Prompts for small QueCC-LLaVAs, and what tests ask of them."""

import torch

from tests.builders.prompts import pad


# Questions of different lengths; a row is the questions about the images of one prompt.
WHAT, WHERE, HOW = [61], [62, 63, 64], [65, 66, 67, 68, 69]
ROWS = ([WHERE], [WHAT, HOW], [], [HOW])
NEW = {"max_new_tokens": 6, "do_sample": False}


def features(model, inputs: dict) -> torch.Tensor:
    """Visual tokens `(images, visual tokens, width)`."""
    names = ("pixel_values", "query_input_ids", "query_attention_mask")
    return torch.stack(model.get_image_features(**{name: inputs[name] for name in names}).pooler_output)


def one_prompt(batch: dict, rows: tuple, index: int) -> dict:
    """One prompt of a batch, with its images and questions, and nothing padded but questions of several lengths."""
    is_real = batch["attention_mask"][index] == 1
    inputs = {"input_ids": batch["input_ids"][index : index + 1, is_real]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if rows[index]:
        first = sum(len(row) for row in rows[:index])
        inputs["pixel_values"] = batch["pixel_values"][first : first + len(rows[index])]
        inputs["query_input_ids"], inputs["query_attention_mask"] = pad([[1, *question] for question in rows[index]])
    return inputs


def answers(model, inputs: dict, **kwargs) -> torch.Tensor:
    return model.generate(**inputs, **{**NEW, **kwargs})[:, inputs["input_ids"].shape[1] :]
