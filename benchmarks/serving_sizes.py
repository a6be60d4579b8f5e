"""
vLLM's server with MQT-LLaVA beside vLLM's own LLaVA, both with the same vision tower and decoder, at any size:

    VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_LOGGING_LEVEL=WARNING \
        nox -s vllm -- benchmarks/serving_sizes.py --size full --dtype bfloat16 \
        --output benchmarks/results/serving_sizes.json

Two servers, each with vLLM's defaults (chunked prefill, prefix caching), take turns. Two sections:

1. cold: requests at once, each with a picture that no cache knows.
2. asked again: each client has such a picture, and asks five questions about it, one after the other. "five m" asks
   each at another number of visual tokens; with "nothing shared" an image is encoded once for each of them, as the
   plugin does with a vLLM that it does not know.

"auto" is the adaptive budget. Random weights are never confident, so that it climbs to M through all levels: the worst
case. The prediction is what the FLOPs of `mqt_llava.planning` say of what is compared: an image counted as often as it
should be encoded, prompts without the tokens that vLLM reports as cached. The share is how much of it the clock shows.
Results are saved after each round. On one GPU both servers need room: `-- --gpu-memory-utilization 0.45`.

vLLM's LLaVA imports torchvision, which `nox -s vllm` leaves out: install a build for the torch that is there first.
"""

import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median, quantiles

from harness import REPOSITORY, SEED, at_least_one, command_line, compare, machine, save, spread, table, take_turns
from PIL import Image
from servers import Server, vllm_environment, vllm_version, with_benchmarks_on_the_path
from serving import picture, question_about


QUESTIONS = ("List the items.", "What is there most of?", "Is there a bag?", "What is on the left?", "How many items?")
FEW_TO_MANY, FIVE = (1, 16, 64, 256), (16, 256, 1, 64, 128)
M, LLAVA_TOKENS = 256, 576
HEADER = "x-unshared-encodings"
FLAGS = {
    "mqt": [
        "--trust-request-mm-kwargs", "--middleware", "mqt_llava.serving.adaptive_middleware.AdaptiveBudgets",
        "--middleware", "unshared_encodings.UnsharedEncodings",
    ],
    "llava": [],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """
    Args:
        numbers: Of visual tokens: those of requests, in turn; `None` for LLaVA, or "auto".
        is_shared: Whether an image is encoded once for all of them.
    """

    section: str
    name: str
    server: str
    numbers: tuple[int | str | None, ...]
    is_shared: bool = True

    @property
    def questions(self) -> tuple[str, ...]:
        return QUESTIONS if self.section == "asked again" else QUESTIONS[:1]


CASES = [
    Case(section, name, server, numbers)
    for section, mixed in (("cold", ("mixed", FEW_TO_MANY)), ("asked again", ("five m", FIVE)))
    for name, server, numbers in (
        ("LLaVA", "llava", (None,)),
        *((str(m), "mqt", (m,)) for m in FEW_TO_MANY),
        (mixed[0], "mqt", mixed[1]),
        ("auto", "mqt", ("auto",)),
    )
]
CASES.append(Case("asked again", "five m, nothing shared", "mqt", FIVE, is_shared=False))


@dataclass(frozen=True)
class Answer:
    m: int | str | None
    first_token: float  # seconds
    prompt_tokens: int
    cached_tokens: int


async def ask(client, model: str, url: str, question: str, m: int | str | None, new_tokens: int) -> Answer:
    asked = question_about(url, question, m, new_tokens, return_token_ids=True)
    start, first = time.perf_counter(), None
    response = await client.chat.completions.with_raw_response.create(model=model, **asked)
    async for chunk in response.parse():
        if first is None and chunk.choices and getattr(chunk.choices[0], "token_ids", None):
            first = time.perf_counter() - start
        if chunk.usage:
            usage = chunk.usage
    if m == "auto" and response.headers["x-visual-token-level"] != str(M):
        raise RuntimeError(f"auto has stopped at {response.headers['x-visual-token-level']}, below M.")
    if usage.completion_tokens != new_tokens:
        raise RuntimeError(f"An answer has {usage.completion_tokens} tokens instead of {new_tokens}.")
    details = usage.prompt_tokens_details
    return Answer(m, first, usage.prompt_tokens, details.cached_tokens or 0 if details else 0)


async def ask_all(server: Server, case: Case, urls: list[str], new_tokens: int) -> tuple[float, list[Answer]]:
    """Seconds for all answers, and these. Each client asks its questions one after the other."""
    import openai  # which is there where vLLM is

    async def ask_about(client, url: str, numbers: list) -> list[Answer]:
        return [
            await ask(client, server.model, url, question, m, new_tokens)
            for question, m in zip(case.questions, numbers)
        ]

    asked = len(case.questions)
    numbers = list(islice(cycle(case.numbers), len(urls) * asked))
    settings = {"api_key": "none", "max_retries": 0, "timeout": 1800}
    settings["default_headers"] = {} if case.is_shared else {HEADER: "1"}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", **settings) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(ask_about(client, url, numbers[i * asked : (i + 1) * asked]) for i, url in enumerate(urls))
        )
        return round(time.perf_counter() - start, 3), [answer for some in answers for answer in some]


class Pictures:
    """Pictures that no cache knows."""

    def __init__(self):
        self.rng = random.Random(SEED)
        paths = sorted((REPOSITORY / "examples" / "images").glob("mosaic_*.png"))
        self.mosaics = [Image.open(path) for path in paths]

    def new(self, number: int) -> list[str]:
        return [picture(self.rng.choice(self.mosaics), self.rng) for _ in range(number)]


def case_flops(case: Case, images: int, answers: list[Answer], costs, new_tokens: int) -> int:
    """What all requests of a case have to compute."""
    most = [M if m == "auto" else m for m in case.numbers]
    if case.section == "cold":
        flops = sum(map(costs.image, islice(cycle(most), images)))
    elif not case.is_shared:
        flops = images * sum(map(costs.image, most))
    else:
        flops = images * costs.image(None if case.server == "llava" else max(most))
    for answer in answers:
        visual_tokens = {None: LLAVA_TOKENS, "auto": M}.get(answer.m, answer.m)
        read = (answer.prompt_tokens - visual_tokens, new_tokens, answer.cached_tokens)
        flops += costs.auto(*read) if answer.m == "auto" else costs.answer(answer.m, *read)
    return flops


def summarize(outcomes: dict[Case, list], images: dict[str, int], costs, new_tokens: int) -> list[dict]:
    """A row for each case, from all rounds so far."""
    rows, llava = [], {}
    for case, rounds in outcomes.items():
        seconds, answers = [one for one, _ in rounds], [answer for _, some in rounds for answer in some]
        firsts, requests = [answer.first_token for answer in answers], len(rounds[0][1])
        flops = case_flops(case, images[case.section], rounds[-1][1], costs, new_tokens)
        row = {
            "section": case.section, "m": case.name, "requests": requests, "seconds": seconds,
            "median": median(seconds), "requests_per_second": round(requests / median(seconds), 3),
            "first_token_median": round(median(firsts), 3),
            "first_token_95": round(quantiles(firsts, n=20)[-1] if len(firsts) > 1 else firsts[0], 3),
            "prompt_tokens": mean(answer.prompt_tokens for answer in answers),
            "cached_tokens": mean(answer.cached_tokens for answer in answers), "flops": flops,
        }  # fmt: skip
        base = llava.setdefault(case.section, row)  # the first of a section
        row |= compare("over_llava", base["seconds"], seconds)
        row["predicted"] = base["flops"] / flops
        row["share"] = row["over_llava"] / row["predicted"]
        rows.append(row)
    return rows


def sharing(rows: list[dict]) -> dict:
    """Five m about one image: how many times as many requests a second as with nothing shared."""
    (now,), (before,) = ([row for row in rows if row["m"] == name] for name in ("five m", "five m, nothing shared"))
    predicted = before["flops"] / now["flops"]
    return {**compare("over_nothing_shared", before["seconds"], now["seconds"]), "predicted": predicted}


def climbing(rows: list[dict]) -> dict:
    """By section, what a request costs that climbs to M, over one that asks for M."""
    by_name, costs = {(row["section"], row["m"]): row for row in rows}, {}
    for section in dict.fromkeys(section for section, _ in by_name):
        auto, most = by_name[section, "auto"], by_name[section, str(M)]
        cost, predicted = compare("over_m", auto["seconds"], most["seconds"]), auto["flops"] / most["flops"]
        costs[section] = {**cost, "predicted": predicted, "share": cost["over_m"] / predicted}
    return costs


def report(result: dict) -> str:
    head = "images | m | requests / s | first token, s: median | 95th percentile | requests / s over LLaVA's (rounds) "
    head += "| FLOPs predict | share"
    lines = [
        f"{row['section']} | {row['m']} | {row['requests_per_second']:.2f} | {row['first_token_median']:.2f} "
        f"| {row['first_token_95']:.2f} | {spread(row, 'over_llava', 2)} | {row['predicted']:.2f} "
        f"| {row['share']:.2f}"
        for row in result["rows"]
    ]
    shared = result["sharing"]
    said = [
        f"Five m about one image, over nothing shared: {spread(shared, 'over_nothing_shared', 2)}; the FLOPs predict "
        f"{shared['predicted']:.2f}.",
        *(
            f"Climbing to M, {section}: {spread(cost, 'over_m', 2)} times M's seconds; the FLOPs predict "
            f"{cost['predicted']:.2f}."
            for section, cost in result["climbing"].items()
        ),
    ]
    return "\n\n".join([table(head, lines), *said])


def save_models_elsewhere(folder: str, size: str, dtype: str) -> None:
    """In a process of its own, which gives the memory back."""
    from served_models import save_models

    save_models(Path(folder), size, dtype)


def main() -> None:
    parser = command_line(
        __doc__,
        size={"choices": ("tiny", "mid", "full", "7b"), "default": "tiny"},
        dtype={"default": "float32"},
        rounds={"default": 3},
    )
    parser.add_argument("--cold-images", type=at_least_one, default=8, help="requests at once, a picture each")
    parser.add_argument("--images", type=at_least_one, default=3, help="clients at once that ask five times")
    parser.add_argument("--new-tokens", type=at_least_one, default=4, help="of an answer")
    parser.add_argument("flags", nargs="*", help="further flags of all servers, behind --")
    args = parser.parse_args()

    images = {"cold": args.cold_images, "asked again": args.images}
    flags = ["--dtype", args.dtype, "--enable-prompt-tokens-details", *args.flags]
    result = {
        **machine("torch", "torchvision", "transformers", "openai"), "vllm": vllm_version(),
        "size": args.size, "dtype": args.dtype,
        "rounds": args.rounds, "images": images, "new_tokens": args.new_tokens, "flags": flags,
        "environment": vllm_environment(),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            process.submit(save_models_elsewhere, folder, args.size, args.dtype).result()
        servers = {
            name: stack.enter_context(Server(f"{folder}/{name}", [*flags, *own], with_benchmarks_on_the_path()))
            for name, own in FLAGS.items()
        }
        from served_models import Costs

        costs, pictures, rng = Costs(Path(folder)), Pictures(), random.Random(SEED)

        def call(case: Case, images: int) -> tuple[float, list[Answer]]:
            return asyncio.run(ask_all(servers[case.server], case, pictures.new(images), args.new_tokens))

        for case in CASES:
            call(case, 1)  # warms up
        outcomes = {case: [] for case in CASES}
        for done in range(1, args.rounds + 1):
            calls = {case: partial(call, case, images[case.section]) for case in CASES}
            for case, returned in take_turns(calls, 1, rng).items():
                outcomes[case] += returned
            result |= {"rounds": done, "rows": summarize(outcomes, images, costs, args.new_tokens)}
            result |= {"sharing": sharing(result["rows"]), "climbing": climbing(result["rows"])}
            save(result, args.output, report(result))
            print(f"Round {done}\n{report(result)}", flush=True)


if __name__ == "__main__":
    main()
