"""
Throughput of vLLM's OpenAI-compatible server by number of visual tokens, on a CPU with the embedded checkpoint:

    OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_LOGGING_LEVEL=WARNING \
        nox -s vllm -- benchmarks/serving.py --output benchmarks/results/serving.json

It starts a server and sends rounds of 64 streaming requests at once, all with the same m, or each with one of them in
turn ("mixed"); the rounds come in random order. Each request shows a picture of its own that no cache knows, and gets
an answer of the same length, whatever the model would say. Times are the client's, in this process, which shares the
cores with the server: the seconds from the first request to the last answer's end, and to each answer's first piece.
"""

import asyncio
import base64
import io
import json
import random
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median, quantiles

from harness import REPOSITORY, SEED, command_line, machine, save, table, take_turns
from PIL import Image
from servers import Server, vllm_environment, vllm_version


QUESTION = "List the items."


def picture(mosaic: Image.Image, rng: random.Random) -> str:
    """The mosaic with another shade of each pixel's edge, as a URL: a picture that no cache knows."""
    mosaic = mosaic.convert("RGB").resize((112, 112))
    for _ in range(64):
        mosaic.putpixel((rng.randrange(112), rng.randrange(112)), tuple(rng.randbytes(3)))
    mosaic.save(data := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def question_about(url: str, question: str, m: int | str | None, new_tokens: int, **extra_body) -> dict:
    """What OpenAI's client is told for a streamed answer of so many tokens; `m` is `None` for models without it."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    if m is not None:
        extra_body["mm_processor_kwargs"] = {"num_visual_tokens": m}
    return {
        "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": new_tokens,
        "stream": True, "stream_options": {"include_usage": True},
        "extra_body": {"ignore_eos": True, **extra_body},
    }  # fmt: skip


async def ask(client, model: str, url: str, m: int, new_tokens: int) -> float:
    """Seconds until the answer's first piece."""
    start, first = time.perf_counter(), None
    stream = await client.chat.completions.create(model=model, **question_about(url, QUESTION, m, new_tokens))
    async for chunk in stream:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - start
        if chunk.usage and chunk.usage.completion_tokens != new_tokens:
            raise RuntimeError(f"An answer has {chunk.usage.completion_tokens} tokens instead of {new_tokens}.")
    return first


async def ask_all(url: str, model: str, urls: list[str], numbers: list[int], new_tokens: int) -> dict:
    """Seconds until the last answer's end, and to each answer's first piece."""
    import openai  # which is there where vLLM is

    # A new one each time: the server closes connections that nobody uses for a while.
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        start = time.perf_counter()
        firsts = await asyncio.gather(*(ask(client, model, *one, new_tokens) for one in zip(urls, numbers)))
        return {"seconds": time.perf_counter() - start, "first_piece": firsts}


def measure(url: str, model: str, numbers: list[int], rounds: int, requests: int, new_tokens: int) -> list[dict]:
    rng = random.Random(SEED)
    mosaics = [Image.open(path) for path in sorted((REPOSITORY / "examples" / "images").glob("mosaic_*.png"))]

    def round_of(case: list[int]) -> dict:
        urls = [picture(rng.choice(mosaics), rng) for _ in range(requests)]
        return asyncio.run(ask_all(url, model, urls, list(islice(cycle(case), requests)), new_tokens))

    calls = {
        name: partial(round_of, case) for name, case in ({str(m): [m] for m in numbers} | {"mixed": numbers}).items()
    }
    rows = []
    for name, returned in take_turns(calls, rounds + 1, rng).items():
        seconds = [round(one["seconds"], 3) for one in returned[1:]]  # the first warms up
        firsts = [first for one in returned[1:] for first in one["first_piece"]]
        rows.append({
            "m": name, "seconds": seconds, "median": median(seconds),
            "requests_per_second": round(requests / median(seconds), 2),
            "new_tokens_per_second": round(requests * new_tokens / median(seconds), 1),
            "first_piece_median": round(median(firsts), 3), "first_piece_95": round(quantiles(firsts, n=20)[-1], 3),
        })  # fmt: skip
    return rows


def report(rows: list[dict]) -> str:
    head = "m | s for all (rounds) | requests / s | new tokens / s | first piece, s: median | 95th percentile"
    lines = [
        f"{row['m']} | {row['median']:.2f} ({min(row['seconds']):.2f} to {max(row['seconds']):.2f}) "
        f"| {row['requests_per_second']:.1f} | {row['new_tokens_per_second']:.0f} "
        f"| {row['first_piece_median']:.2f} | {row['first_piece_95']:.2f}"
        for row in rows
    ]
    return table(head, lines)


def main() -> None:
    parser = command_line(__doc__, rounds={"default": 5})
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument(
        "--num-visual-tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="numbers of visual tokens"
    )
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("flags", nargs="*", help="further flags of the server, behind --")
    args = parser.parse_args()

    flags = ["--trust-request-mm-kwargs", "--dtype", "float32", *args.flags]
    result = {
        **machine("torch", "transformers", "openai"), "vllm": vllm_version(),
        "model": Path(args.model).name, "flags": flags, "requests_at_once": args.requests, "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "environment": vllm_environment(),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    with Server(args.model, flags) as server:
        result["rows"] = measure(
            server.url, args.model, args.num_visual_tokens, args.rounds, args.requests, args.new_tokens
        )
    print(report(result["rows"]))
    save(result, args.output, report(result["rows"]))


if __name__ == "__main__":
    main()
