"""Turns of conversations with the small model, in batches, and beside them what a fresh run on all of it answers."""

import torch

from tests.builders.prompts import expand, pad, random_pixels


NEW = 4


class Chat:
    """One row: pieces of text and images by their number."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def ids(self, counts) -> list[int]:
        return expand(self.pieces, iter([counts[image] for image in self.images]))

    @property
    def images(self) -> list[str]:
        return [piece for piece in self.pieces if isinstance(piece, str)]


PIXELS = dict(zip("abcdef", random_pixels(6)))


def batch(chats, counts, padding=0, side="left", masked=None):
    """Inputs at `counts[image]`, with `padding` further columns; `masked` are pad tokens in mid-row, by row."""
    rows = [chat.ids(counts) for chat in chats]
    masks = [[1] * len(row) for row in rows]
    for row, mask, (place, number) in zip(rows, masks, masked or [(0, 0)] * len(rows)):
        row[place:place], mask[place:place] = [0] * number, [0] * number
    ids, mask = pad(rows, side, masks, extra=padding)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if images := [image for chat in chats for image in chat.images]:
        inputs["pixel_values"] = torch.stack([PIXELS[image] for image in images])
        inputs["visual_token_counts"] = torch.tensor([counts[image] for image in images])
    return inputs


def text_of(inputs: dict) -> dict:
    """Without the images."""
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def go_on(chats, answers, *pieces) -> list[Chat]:
    """Adds to each row its answer, and what is said to it."""
    for chat, answer in zip(chats, answers):
        chat.pieces += [*answer, *pieces]
    return chats


def ask(model, inputs, **kwargs):
    output = model.generate(
        **inputs, **{"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    )
    return output, output.sequences[:, inputs["input_ids"].shape[1] :].tolist()


def fresh(model, chats, counts, **kwargs) -> list[list[int]]:
    """Without padding, batch and cache."""
    return [ask(model, batch([chat], counts), **{"use_cache": False, **kwargs})[1][0] for chat in chats]


def at(m: int) -> dict[str, int]:
    return dict.fromkeys(PIXELS, m)
