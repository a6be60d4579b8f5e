"""
Prompts of the small models as tensors, and images for them.

The fuzzer's oracles use this, so nothing of the package is imported here.
"""

import torch


IMAGE_TOKEN_ID = 99


def pad(rows: list[list[int]], side: str = "left", masks: list[list[int]] | None = None, extra: int = 0):
    """
    Token ids and attention mask, which is 1 on all tokens of the rows where no masks are given. `extra` columns are
    padding in every row.
    """
    length = max(map(len, rows)) + extra

    def lengthen(row: list[int]) -> list[int]:
        padding = [0] * (length - len(row))
        return padding + row if side == "left" else row + padding

    masks = masks or [[1] * len(row) for row in rows]
    return torch.tensor([lengthen(row) for row in rows]), torch.tensor([lengthen(mask) for mask in masks])


def expand(row: list[int | str], counts) -> list[int]:
    """A row of tokens and of images, which are strings; an image gets the next number of placeholders."""
    pieces = [[IMAGE_TOKEN_ID] * next(counts) if isinstance(piece, str) else [piece] for piece in row]
    return [token for piece in pieces for token in piece]


def prompt_rows(rows: list[list[int | str]], counts: list[int], side: str = "left") -> dict[str, torch.Tensor]:
    """Prompts of text tokens and images, which are strings, with so many placeholders for each."""
    counts = iter(counts)
    ids, mask = pad([expand(row, counts) for row in rows], side)
    return {"input_ids": ids, "attention_mask": mask}


def random_pixels(num_images: int, size: int = 28, seed: int = 7) -> torch.Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_inputs(*rows: list[int], image_size: int = 28, side: str = "left") -> dict[str, torch.Tensor]:
    """What a processor would give: a row is the visual tokens of each image in it, with text around them."""
    tokens = []
    for i, row in enumerate(rows):
        images = [piece for j in range(len(row)) for piece in ("image", 31 + i, 41 + j)]
        tokens.append([1, 11 + i, *images, 51 + i])
    counts = [count for row in rows for count in row]
    inputs = prompt_rows(tokens, counts, side)
    if counts:
        inputs["pixel_values"] = random_pixels(len(counts), image_size)
        inputs["visual_token_counts"] = torch.tensor(counts)
    return inputs


def random_quecc_inputs(
    *rows: list[list[int]], side: str = "left", num_visual_tokens: int = 4
) -> dict[str, torch.Tensor]:
    """What a processor would give: a row is the question about each image in it, with text around them."""
    tokens = []
    for i, questions in enumerate(rows):
        images = [piece for question in questions for piece in ("image", *question, 31 + i)]
        tokens.append([1, 11 + i, *images, 51 + i])
    questions = [[1, *question] for row in rows for question in row]
    inputs = prompt_rows(tokens, [num_visual_tokens] * len(questions), side)
    if questions:
        inputs["pixel_values"] = random_pixels(len(questions))
        inputs["query_input_ids"], inputs["query_attention_mask"] = pad(questions, side)
    return inputs


def one_prompt(batch: dict, rows: tuple, index: int) -> dict:
    """One prompt of a batch from either of these, with its images, and nothing padded but questions."""
    is_real = batch["attention_mask"][index] == 1
    inputs = {"input_ids": batch["input_ids"][index : index + 1, is_real]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if rows[index]:
        first = sum(len(row) for row in rows[:index])
        for name in {"pixel_values", "visual_token_counts"} & set(batch):
            inputs[name] = batch[name][first : first + len(rows[index])]
        if "query_input_ids" in batch:
            queries = [[1, *question] for question in rows[index]]
            inputs["query_input_ids"], inputs["query_attention_mask"] = pad(queries)
    return inputs


def text_labels(inputs: dict, image_token_id: int = IMAGE_TOKEN_ID) -> torch.Tensor:
    """The text as labels: neither padding nor images are learned."""
    is_text = (inputs["attention_mask"] == 1) & (inputs["input_ids"] != image_token_id)
    return inputs["input_ids"].where(is_text, -100)
