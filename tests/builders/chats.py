"""Prompts and chats as a user writes them, and errors that must name what is wrong with one."""

import re

import pytest


PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"


def user(*content) -> dict:
    blocks = [{"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "image": x} for x in content]
    return {"role": "user", "content": blocks}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def tokenize_chat(processor, messages, **kwargs):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **kwargs)


def raises(error: type, *parts):
    """The error's message has these parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))
