"""Prompts for small QueCC-LLaVAs, and what tests ask of them."""

import torch


# Questions of different lengths; a row is the questions about the images of one prompt.
WHAT, WHERE, HOW = [61], [62, 63, 64], [65, 66, 67, 68, 69]
ROWS = ([WHERE], [WHAT, HOW], [], [HOW])
NEW = {"max_new_tokens": 6, "do_sample": False}


def features(model, inputs: dict) -> torch.Tensor:
    """Visual tokens `(images, visual tokens, width)`."""
    names = ("pixel_values", "query_input_ids", "query_attention_mask")
    return torch.stack(model.get_image_features(**{name: inputs[name] for name in names}).pooler_output)


def answers(model, inputs: dict, **kwargs) -> torch.Tensor:
    return model.generate(**inputs, **{**NEW, **kwargs})[:, inputs["input_ids"].shape[1] :]
