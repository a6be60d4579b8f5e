"""
What a model is trained on, in the two formats that people have: LLaVA's JSON (`id`, `image`, `conversations`) and chat
`messages` with `images`, as Hugging Face datasets and TRL hold them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.processing_compressed_llava import IMAGE_TOKEN


LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
CHAT_ROLES = ("user", "assistant", "system")


class RecordError(ValueError):
    """A record that nothing can be learned from."""


@dataclass
class Record:
    """
    One conversation.

    Args:
        id: Names the record in logs, and enters the draw of its batch's budget.
        messages: Chat messages whose content is a list of blocks; an image is the block `{"type": "image"}`.
        images: The images in the order of those blocks: paths, or what the processor takes.
    """

    id: str
    messages: list[dict]
    images: list[Any]

    def messages_with_images(self) -> list[dict]:
        """The messages with the images in their blocks, as chat templates take them."""
        images = iter(self.images)
        return [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(images)} if block["type"] == "image" else block
                    for block in message["content"]
                ],
            }
            for message in self.messages
        ]


def read_record(row: dict, image_folder: Path | None = None, needs_answer: bool = True) -> Record:
    """
    The record that a row of either format holds.

    Args:
        row: `conversations` with `from` and `value`, and `image`, a path or a list of paths; or `messages` with `role`
            and `content`, and `images`. Without `id`, a digest of the texts takes its place.
        image_folder: Where relative paths start.
        needs_answer: Whether a conversation without one is refused.

    Raises:
        RecordError: An unknown role, no answer, no text, or another number of images than the messages show.
    """
    turns, images = row.get("conversations", row.get("messages")), row.get("images", row.get("image"))
    if not isinstance(turns, list) or not turns:
        raise RecordError(f"its conversation is {turns!r}, but must be a list of messages")
    if not all(isinstance(turn, dict) for turn in turns):
        raise RecordError(f"its conversation is {str(turns)[:200]}, but must be a list of messages")
    messages = [_read_llava_turn(turn) if "conversations" in row else _read_message(turn) for turn in turns]
    # Chats that were cut into pieces may begin with an answer to nothing.
    while messages and messages[0]["role"] == "assistant":
        messages.pop(0)
    roles = [message["role"] for message in messages]
    if "user" not in roles or needs_answer and "assistant" not in roles[roles.index("user") :]:
        raise RecordError("no message is an answer to another" if needs_answer else "no message is a user's")

    images = images if isinstance(images, (list, tuple)) else [] if images is None else [images]
    blocks = [block for message in messages for block in message["content"] if block["type"] == "image"]
    if images and not blocks:
        # Unmarked, they are what the conversation is about.
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "image"} for _ in images] + first["content"]
    elif not images and blocks and all("image" in block for block in blocks):
        images = [block["image"] for block in blocks]
    elif len(images) != len(blocks):
        raise RecordError(f"the messages show {len(blocks)} images, but it has {len(images)}")
    if any("num_visual_tokens" in block for message in messages for block in message["content"]):
        raise RecordError("a block has `num_visual_tokens`, but in training the budget sampler chooses the number")
    for block in blocks:
        block.pop("image", None)  # an image is loaded from one place
    images = [_locate(image, image_folder) for image in images]
    return Record(str(row["id"]) if row.get("id") is not None else _digest(messages), messages, images)


def _read_llava_turn(turn: dict) -> dict:
    role, text = turn.get("from"), turn.get("value")
    if role not in LLAVA_ROLES:
        raise RecordError(f"a message is from {role!r}, but must be from one of {', '.join(LLAVA_ROLES)}")
    if not isinstance(text, str):
        raise RecordError(f"the text of a message is {text!r}")
    content = []
    if role == "human":
        # An image stands in front of its message, wherever in it the marker stood.
        content = [{"type": "image"}] * text.count(IMAGE_TOKEN)
        text = text.replace(IMAGE_TOKEN, "").strip() if content else text
    return {
        "role": LLAVA_ROLES[role],
        "content": [dict(block) for block in content] + [{"type": "text", "text": text}],
    }


def _read_message(message: dict) -> dict:
    role, content = message.get("role"), message.get("content")
    if role not in CHAT_ROLES:
        raise RecordError(f"a message's role is {role!r}, but must be one of {', '.join(CHAT_ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(_is_block(block) for block in content):
        raise RecordError(
            f"the content of a message is {str(content)[:200]}, but must be text, or text and image blocks"
        )
    # Datasets fill the fields that a block lacks with None.
    return {
        "role": role,
        "content": [{key: value for key, value in block.items() if value is not None} for block in content],
    }


def _is_block(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    return block.get("type") == "image" or block.get("type") == "text" and isinstance(block.get("text"), str)


def _locate(image: Any, image_folder: Path | None) -> Any:
    is_path = image_folder is not None and isinstance(image, str) and "://" not in image
    return image_folder / image if is_path else image


def _digest(messages: list[dict]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
