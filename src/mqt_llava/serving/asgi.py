# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Requests and responses as ASGI's messages."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def without(headers: Headers, *names: bytes) -> Headers:
    return [header for header in headers if header[0].lower() not in names]


async def read_request(receive: Receive) -> list[Message]:
    """All messages of a request's body, or up to where the client has gone."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def replay(messages: list[Message], receive: Receive) -> Receive:
    """These messages again, then what else comes."""
    left = iter(messages)

    async def replayed() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return replayed


async def wait_for_disconnect(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def with_length(headers: Headers, body: bytes) -> Headers:
    """As those of this body."""
    return [*without(headers, b"content-length", b"transfer-encoding"), (b"content-length", str(len(body)).encode())]


async def respond(send: Send, status: int, body: bytes) -> None:
    """Sends a JSON document."""
    headers = with_length([(b"content-type", b"application/json")], body)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
