"""Prompts in LLaVA's "v1" form, and their tokens with as many placeholders as each image has visual tokens."""

IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)


def token_ids(tokenizer, text: str, counts: list[int]) -> list[int]:
    """The prompt is tokenised with one placeholder per image; then each is repeated."""
    placeholder, counts, ids = tokenizer.convert_tokens_to_ids(IMAGE), iter(counts), []
    for token in tokenizer(text)["input_ids"]:
        ids += [token] * (next(counts) if token == placeholder else 1)
    if next(counts, None) is not None:
        raise AssertionError(f"{text!r} has fewer placeholders than there are images")
    return ids


def render(messages: list[dict], adds_prompt: bool) -> str:
    """A chat as text: the images of a message come first, and a typed placeholder is no placeholder."""
    text = "" if messages[0]["role"] == "system" else SYSTEM
    for message in messages:
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said = f"{IMAGE}\n" * sum(item["type"] == "image" for item in items)
        said += "".join(item["text"] for item in items if item["type"] == "text").replace(IMAGE, "< image>")
        text += {"system": f"{said} ", "user": f"USER: {said} ", "assistant": f"ASSISTANT: {said}</s>"}[
            message["role"]
        ]
    return text + "ASSISTANT:" * adds_prompt


def padded(rows: list[list[int]], side: str, padding: int) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and mask of a batch."""
    length = max(map(len, rows))
    ids, masks = [], []
    for row in rows:
        gap = length - len(row)
        ids.append([padding] * gap + row if side == "left" else row + [padding] * gap)
        masks.append([0] * gap + [1] * len(row) if side == "left" else [1] * len(row) + [0] * gap)
    return ids, masks
