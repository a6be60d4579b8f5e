"""
An hour of random requests to vLLM's server with the embedded checkpoint, and at last an engine that is killed:

    OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_LOGGING_LEVEL=WARNING \
        nox -s vllm -- benchmarks/endurance.py --minutes 60 --output benchmarks/results/endurance.jsonl
    python benchmarks/endurance_report.py benchmarks/results/endurance.jsonl --figure docs/images/endurance.png

Several clients send what `endurance_load.py` draws: any number of visual tokens, one for each image, adaptive budgets,
several images and turns, bad requests, and streams whose client hangs up. The encoder cache holds four images of a
hundred, the KV cache fewer tokens than the requests at once need, so that both evict. Every 50th answer is compared
with transformers' `generate`, in another process. Nothing may take longer than `--deadline`.

vLLM's server and engine each have a cache of processed pictures. Where requests are aborted or overtake each other the
two may drift apart; vLLM then ends a request with an internal error, for its client to send it again, as OpenAI's
does by itself. So do the clients here. How often is counted (`resent`), beside what the server's log says of such
misses.

The log has a JSON document in each line, as soon as it is known: `begin`; every few seconds a `sample` of memory,
caches and counts so far; each `comparison` and `failure`; when the load ends, what is left of it (`drained`); and what
became of the streams whose engine was killed (`killed`).
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from endurance_load import Load, M, Request, ask_transformers, start_transformers
from harness import ARGUMENTS, REPOSITORY, SEED, at_least_one, machine
from servers import Server, vllm_environment, vllm_version, with_benchmarks_on_the_path


CHECKPOINT = REPOSITORY / "model_cards" / "mqt-llava-tiny"
METRICS = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total")
METRICS += ("prefix_cache_queries_total", "prefix_cache_hits_total")
FLAGS = [
    "--dtype", "float32", "--max-model-len", "1024", "--block-size", "32",
    "--trust-request-mm-kwargs", "--middleware", "mqt_llava.serving.adaptive_middleware.AdaptiveBudgets",
    "--max-num-batched-tokens", str(4 * M), "--num-gpu-blocks-override", "36", "--mm-processor-cache-gb", "0.005",
]  # fmt: skip
COMPARED = 50  # every so many answers
KILLED_STREAMS = 16
RETRIES = 2  # as OpenAI's client


class Failure(Exception):
    """An outcome that must not be."""


class InternalError(Failure):
    """What vLLM answers where its two caches of pictures have drifted apart."""


class Log:
    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.start = path.open("w"), time.monotonic()

    def write(self, event: str, **fields) -> None:
        line = {"event": event, "seconds": round(time.monotonic() - self.start, 2), **fields}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if event != "sample":
            print(json.dumps(line)[:400], flush=True)


async def answer_of(response) -> tuple[list[int], str | None]:
    """Tokens and reason to finish of a response, streamed or not."""
    if "text/event-stream" not in response.headers["content-type"]:
        (choice,) = json.loads(await response.aread())["choices"]
        return choice["token_ids"], choice["finish_reason"]
    ids, reason = [], None
    async for event in events_of(response):
        for choice in event["choices"]:
            ids += choice.get("token_ids") or []
            reason = choice.get("finish_reason") or reason
    return ids, reason


async def events_of(response):
    """Of a stream. An error in it is a [`Failure`]."""
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                kind = InternalError if event["error"]["code"] == 500 else Failure
                raise kind(f"A stream has ended with {event['error']}")
            yield event


class Clients:
    """What the clients do, and what of it was counted."""

    def __init__(self, server: Server, load: Load, log: Log, deadline: float, process: ProcessPoolExecutor):
        import httpx  # which openai brings

        self.http = httpx.AsyncClient(base_url=server.url, timeout=None, limits=httpx.Limits(max_connections=None))
        self.load, self.log, self.deadline, self.process = load, log, deadline, process
        self.outcomes, self.comparisons, self.answers = Counter(), [], 0

    async def run(self, end: float) -> None:
        while time.monotonic() < end:
            request = self.load.request()
            try:
                outcome = await asyncio.wait_for(self.send(request), self.deadline)
            except Exception as error:  # whatever it is, the others go on
                outcome, reason = "failure", repr(error)
                self.log.write("failure", kind=request.kind, reason=reason, body=for_the_log(request.body))
            self.outcomes[outcome] += 1
            self.outcomes[f"{request.kind}: {outcome}"] += 1

    async def send(self, request: Request) -> str:
        for _ in range(RETRIES):
            try:
                return await self.send_once(request)
            except InternalError:
                self.outcomes["resent"] += 1
        return await self.send_once(request)

    async def send_once(self, request: Request) -> str:
        if request.hangs_up_after == 0:
            asked = asyncio.ensure_future(self.http.post("/v1/chat/completions", json=request.body))
            await asyncio.wait({asked}, timeout=random.random() / 10)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return "cancelled"
        async with self.http.stream("POST", "/v1/chat/completions", json=request.body) as response:
            if request.kind == "bad":
                content = json.loads(await response.aread())
                if response.status_code != 400 or not content["error"]["message"]:
                    raise Failure(f"status {response.status_code}: {content}")
                return "refused"
            if response.status_code != 200:
                kind = InternalError if response.status_code == 500 else Failure
                raise kind(f"status {response.status_code}: {(await response.aread()).decode()[:1000]}")
            if request.hangs_up_after:
                left = request.hangs_up_after
                async for _ in events_of(response):
                    left -= 1
                    if not left:
                        break
                return "cancelled"
            ids, reason = await answer_of(response)
        if reason not in ("stop", "length"):
            raise Failure(f"An answer of {len(ids)} tokens has ended without a reason.")
        self.answers += 1
        if self.answers % COMPARED == 0:
            level = int(response.headers.get("x-visual-token-level", 0))
            self.comparisons.append(asyncio.ensure_future(self.compare(request, ids, level)))
        return "answered"

    async def compare(self, request: Request, ids: list[int], level: int) -> None:
        loop = asyncio.get_running_loop()
        theirs, their_level = await loop.run_in_executor(self.process, ask_transformers, request.body)
        same = (ids, level) == (theirs, their_level)
        self.outcomes["same" if same else "different"] += 1
        what = {"body": for_the_log(request.body), "ours": [ids, level], "theirs": [theirs, their_level]}
        self.log.write("comparison", kind=request.kind, same=same, **({} if same else what))


def for_the_log(body: dict) -> str:
    """A body with the ends of its pictures alone."""
    body = json.loads(json.dumps({name: value for name, value in body.items() if name != "model"}))
    for message in body["messages"]:
        for item in message["content"] if isinstance(message["content"], list) else []:
            if "image_url" in item:
                item["image_url"] = item["image_url"]["url"][-16:]
    return json.dumps(body)


def processes_of(server: Server):
    """The server's own process, and that of its engine."""
    import psutil  # which vLLM needs

    own = psutil.Process(server.process.pid)
    (engine,) = (one for one in own.children(recursive=True) if "EngineCore" in " ".join(one.cmdline()))
    return own, engine


def sample(server: Server, cache_file: Path, clients: Clients) -> dict:
    own, engine = processes_of(server)
    return {
        "rss_mb": {"server": own.memory_info().rss >> 20, "engine": engine.memory_info().rss >> 20},
        "encoder_cache": json.loads(cache_file.read_text()),
        **server.metrics(*METRICS), "outcomes": dict(clients.outcomes),
    }  # fmt: skip


async def keep_sampling(server: Server, cache_file: Path, clients: Clients, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        try:
            clients.log.write("sample", **await asyncio.to_thread(sample, server, cache_file, clients))
        except Exception as error:  # such as a server that does not answer in time
            clients.outcomes["failure"] += 1
            clients.log.write("failure", kind="sample", reason=repr(error))


async def drain(server: Server, cache_file: Path, clients: Clients) -> None:
    """What of the load is left, after at most the deadline."""
    end = time.monotonic() + clients.deadline
    while True:
        left = await asyncio.to_thread(sample, server, cache_file, clients)
        busy = left["num_requests_running"] + left["num_requests_waiting"] + left["encoder_cache"]["held"]
        if not busy or time.monotonic() > end:
            misses = server.read_log().count("Multi-modal cache miss")
            return clients.log.write("drained", is_idle=not busy, cache_misses=misses, **left)
        await asyncio.sleep(0.5)


async def kill_engine(server: Server, clients: Clients) -> None:
    """Kills the engine while it streams. All streams must end, and with an error; so must the server."""
    started = [asyncio.Event() for _ in range(KILLED_STREAMS)]

    async def stream(has_started: asyncio.Event) -> str:
        body = clients.load.request("cancelled").body
        body["mm_processor_kwargs"] = {"num_visual_tokens": M}
        reason = None
        try:
            async with clients.http.stream("POST", "/v1/chat/completions", json=body) as response:
                async for event in events_of(response):
                    has_started.set()
                    reason = next((one["finish_reason"] for one in event["choices"] if one["finish_reason"]), reason)
        except Failure:
            return "error in the stream"
        except Exception as error:  # such as a connection that was closed
            return type(error).__name__
        return f"finished ({reason})"

    streams = [asyncio.ensure_future(stream(event)) for event in started]
    # With a KV cache for fewer, not all are read at once: those that wait are to end too.
    await asyncio.wait_for(started[0].wait(), clients.deadline)
    _, engine = processes_of(server)
    engine.kill()
    start = time.monotonic()
    await asyncio.wait(streams, timeout=clients.deadline)
    ends = Counter(one.result() if one.done() else "still running" for one in streams)
    seconds = round(time.monotonic() - start, 2)
    try:
        exit_status = await asyncio.to_thread(server.process.wait, clients.deadline)
    except Exception:
        exit_status = None
    clients.log.write("killed", ends=ends, seconds_until_all_ended=seconds, exit_status=exit_status)
    for one in streams:
        one.cancel()


async def endure(args: argparse.Namespace, server: Server, log: Log, cache_file: Path) -> None:
    mosaics = sorted((REPOSITORY / "examples" / "images").glob("mosaic_*.png"))
    load = Load(server.model, mosaics, args.pictures, random.Random(SEED))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, start_transformers, (str(CHECKPOINT),)) as process:
        clients = Clients(server, load, log, args.deadline, process)
        sampling = asyncio.ensure_future(keep_sampling(server, cache_file, clients, args.sample_seconds))
        end = time.monotonic() + 60 * args.minutes
        await asyncio.gather(*(clients.run(end) for _ in range(args.clients)))
        await asyncio.gather(*clients.comparisons)
        await drain(server, cache_file, clients)
        sampling.cancel()
        await kill_engine(server, clients)
        await clients.http.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=at_least_one, default=12, help="that ask at once")
    parser.add_argument("--pictures", type=at_least_one, default=100)
    parser.add_argument("--deadline", type=float, default=120, help="seconds in which whatever begins must end")
    parser.add_argument("--sample-seconds", type=float, default=10)
    parser.add_argument("--output", **{**ARGUMENTS["output"], "required": True, "help": "the log"})
    parser.add_argument("flags", nargs="*", help="further flags of the server, behind --")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        cache_file = Path(folder) / "encoder_cache.json"
        manager = {"encoder_cache_manager_cls": "encoder_cache_log.LoggedEncoderCache"}
        manager["manager_config"] = {"path": str(cache_file)}
        flags = [*FLAGS, "--ec-manager-config", json.dumps(manager), *args.flags]
        with Server(str(CHECKPOINT), flags, with_benchmarks_on_the_path()) as server:
            log = Log(args.output)
            log.write(
                "begin", **machine("torch", "transformers"), vllm=vllm_version(), flags=[*FLAGS, *args.flags],
                minutes=args.minutes, clients=args.clients, pictures=args.pictures, deadline=args.deadline,
                environment=vllm_environment(), seed=SEED,
            )  # fmt: skip
            asyncio.run(endure(args, server, log, cache_file))


if __name__ == "__main__":
    main()
