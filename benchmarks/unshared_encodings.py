"""
ASGI middleware for vLLM's server: requests with the header `x-unshared-encodings` are processed as by the plugin in a
vLLM that it does not know, where an image is encoded once for each number of visual tokens and nothing is shared.

The plugin's flag is one for all requests, so that those that are there at once must agree.
"""

from mqt_llava.serving import vllm_mqt_llava


HEADER = "x-unshared-encodings"


class UnsharedEncodings:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            vllm_mqt_llava.SHARES_ENCODINGS = not any(name == HEADER.encode() for name, _ in scope["headers"])
        await self.app(scope, receive, send)
