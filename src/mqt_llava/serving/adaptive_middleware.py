# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Adaptive budgets for vLLM's server:

    vllm serve CHECKPOINT --trust-request-mm-kwargs \\
        --middleware mqt_llava.serving.adaptive_middleware.AdaptiveBudgets

For a request with `num_visual_tokens="auto"`, or with the dict of an `AdaptiveBudget`, the same server first answers
short greedy requests at rising levels. What vLLM's caches hold of one level it does not compute at the next.
"""

import asyncio
import json
from typing import Any

from .adaptive_requests import AdaptiveRequest, Limits, encode, parse_request
from .asgi import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    read_request,
    replay,
    respond,
    wait_for_disconnect,
    with_length,
    without,
)
from .probing import NAME, ServedModel, suffices


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LEVEL_HEADER = b"x-visual-token-level"
RANK_HEADER = b"x-data-parallel-rank"
SECONDS_TO_ABORT = 1.0


class AdaptiveBudgets:
    """
    ASGI middleware. It also lets the images of a chat carry numbers of their own, as `num_visual_tokens` beside
    `image_url`, and sends vLLM one list of them.

    Responses to adaptive requests have the level in the header `x-visual-token-level`, 0 without an image. Unless
    streamed, their `usage` has `visual_token_level` and `probed_prompt_tokens`, the lengths of the probes' prompts.
    Where a number or a budget is none, the response has status 400 and the reason.

    Args:
        app: vLLM's server.
    """

    # Read when vLLM imports this file, so that with wrong ones it does not start.
    limits = Limits.from_environment()

    def __init__(self, app: App) -> None:
        self.app = app
        self.model: ServedModel | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (scope["type"] == "http" and scope["method"] == "POST" and path_of(scope) in (CHAT, COMPLETIONS)):
            return await self.app(scope, receive, send)
        messages = await read_request(receive)
        body = b"".join(message.get("body", b"") for message in messages)
        state = scope["app"].state
        try:
            request = parse_request(
                body,
                path_of(scope) == CHAT,
                self.limits,
                lambda: self.served_model(state),
                lambda: default_number(state),
            )
        except (TypeError, ValueError) as reason:
            error = {"message": str(reason), "type": "BadRequestError", "param": NAME, "code": 400}
            return await respond(send, 400, encode({"error": error}))
        if request is None:  # as it came
            return await self.app(scope, replay(messages, receive), send)
        if isinstance(request, bytes):
            return await self.forward(scope, request, receive, send)
        scope = with_rank(scope, request, state.vllm_config.parallel_config)
        listener = asyncio.ensure_future(wait_for_disconnect(receive))
        climb = asyncio.ensure_future(self.climb(scope, request, listener))
        try:
            await asyncio.wait({climb, listener}, return_when=asyncio.FIRST_COMPLETED)
            if listener.done():  # vLLM hears of it too, and aborts what it generates
                await asyncio.wait({climb}, timeout=SECONDS_TO_ABORT)
                return
        finally:
            for task in (climb, listener):
                task.cancel()
            await asyncio.gather(climb, listener, return_exceptions=True)
        level, probed, failure = climb.result()
        for message in failure:
            await send(message)
        if not failure:
            noted = note_level(send, level if request.images else 0, probed)
            await self.forward(scope, request.body(level), receive, noted)

    def served_model(self, state: Any) -> ServedModel:
        if self.model is None:
            self.model = ServedModel.from_config(state.vllm_config.model_config)
        return self.model

    async def climb(
        self, scope: Scope, request: AdaptiveRequest, listener: asyncio.Future
    ) -> tuple[int, int, list[Message]]:
        """
        Returns:
            The level that suffices, the tokens of all probes' prompts, and the response of a probe that failed.
        """
        probed = 0
        for level in request.probed_levels:
            response = await self.probe(scope, request.probe(level), listener)
            if listener.done() or response[0]["status"] != 200:
                return level, probed, response
            content = json.loads(b"".join(message.get("body", b"") for message in response[1:]))
            probed += content["usage"]["prompt_tokens"]
            (answer,) = content["choices"]
            places = [[top["logprob"] for top in place["top_logprobs"]] for place in answer["logprobs"]["content"]]
            if suffices(request.budget, places, answer["finish_reason"]):
                return level, probed, []
        return request.highest, probed, []

    async def probe(self, scope: Scope, body: bytes, listener: asyncio.Future) -> list[Message]:
        """The response to a body, as ASGI's messages."""
        response: list[Message] = []

        async def send(message: Message) -> None:
            response.append(message)

        async def disconnect() -> Message:
            return await asyncio.shield(listener)

        # A state of its own, and a body that is not compressed.
        scope = {**scope, "state": dict(scope.get("state") or {})}
        scope["headers"] = without(scope["headers"], b"accept-encoding")
        await self.forward(scope, body, disconnect, send)
        return response

    async def forward(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Sends the server another body."""
        message = {"type": "http.request", "body": body, "more_body": False}
        await self.app({**scope, "headers": with_length(scope["headers"], body)}, replay([message], receive), send)


def path_of(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


def default_number(state: Any) -> int:
    """The number of visual tokens of images for which a request says nothing."""
    (default,) = state.engine_client.renderer.get_mm_processor().info.num_visual_tokens_per_image({}, 1)
    return default


def with_rank(scope: Scope, request: AdaptiveRequest, parallel_config: Any) -> Scope:
    """
    All probes of a request, and those of others about its images, go to one copy of the model, which knows them.
    Without a probe vLLM chooses.
    """
    is_local = parallel_config.local_engines_only
    num_ranks = parallel_config.data_parallel_size_local if is_local else parallel_config.data_parallel_size
    if num_ranks == 1 or not request.probed_levels or any(name.lower() == RANK_HEADER for name, _ in scope["headers"]):
        return scope
    rank = str(request.rank(num_ranks)).encode()
    return {**scope, "headers": [*scope["headers"], (RANK_HEADER, rank)]}


def note_level(send: Send, level: int, probed: int) -> Send:
    """Adds the level to the headers of a response, and to its `usage` if it is one JSON document."""
    start: Message = {}
    parts: list[bytes] = []

    async def noted(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (LEVEL_HEADER, str(level).encode())]
            headers = {name.lower(): value for name, value in message["headers"]}
            is_json = headers.get(b"content-type", b"").startswith(b"application/json")
            if message["status"] == 200 and is_json and b"content-encoding" not in headers:
                start = message  # sent with the body, whose length is not known yet
                return
        elif message["type"] == "http.response.body" and start:
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = note_usage(b"".join(parts), level, probed)
            await send({**start, "headers": with_length(start["headers"], body)})
            message, start = {**message, "body": body}, {}
        await send(message)

    return noted


def note_usage(body: bytes, level: int, probed: int) -> bytes:
    content = json.loads(body)
    if not isinstance(content, dict) or not isinstance(content.get("usage"), dict):
        return body
    content["usage"] |= {"visual_token_level": level, "probed_prompt_tokens": probed}
    return encode(content)
