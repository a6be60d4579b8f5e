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


def render(messages: list[dict]) -> str:
    """A chat as text, up to its answer: images come first in a message, and a typed placeholder is no placeholder."""
    text = "" if messages[0]["role"] == "system" else SYSTEM
    for message in messages:
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said = f"{IMAGE}\n" * sum(item["type"] == "image" for item in items)
        said += "".join(item["text"] for item in items if item["type"] == "text").replace(IMAGE, "< image>")
        said = {"system": f"{said} ", "user": f"USER: {said} ", "assistant": f"ASSISTANT: {said}</s>"}[message["role"]]
        text += said
    return text + "ASSISTANT:"
