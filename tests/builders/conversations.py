"""Conversations in the format of the dataset, and what a batch of them teaches."""


def chat(*turns: str, images=(), id: str = "1") -> dict:
    """A conversation whose first turn shows the images."""
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": turn}]}
        for number, turn in enumerate(turns)
    ]
    messages[0]["content"] = [{"type": "image"} for _ in images] + messages[0]["content"]
    return {"id": id, "messages": messages, "images": list(images)}


def answers_of(processor, batch: dict) -> list[str]:
    return [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]


def expected_inputs(processor, rows: list[dict], **kwargs) -> dict:
    """What the processor itself makes of the conversations."""
    conversations = []
    for row in rows:
        first, *others = row["messages"]
        images = [{"type": "image", "image": image} for image in row["images"]]
        conversations.append([{"role": "user", "content": images + first["content"][len(images) :]}, *others])
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right", **kwargs},
    )
