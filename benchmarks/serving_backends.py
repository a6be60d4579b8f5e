"""
Whether a model class of vLLM's own would pay: one decoder in vLLM's native class and in its Transformers backend.

    python benchmarks/serving_backends.py --output benchmarks/results/serving_backends.json

The plugin runs MQT-LLaVA through the Transformers backend. What a native class could save is time in the decoder, so
the decoder is measured by itself: a Llama with random weights, served by `LlamaForCausalLM` of vLLM
(`model_impl="vllm"`) and by the backend (`model_impl="transformers"`), each in an engine of its own, both with vLLM's
defaults, which take turns. Prefill: prompts of 512 tokens and one new token; decode: prompts of 16 tokens and 64 new
ones.
"""

import json
import multiprocessing
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from statistics import median

from harness import SEED, command_line, compare, machine, save, spread, table, take_turns, time_call
from servers import vllm_version


WORK = {"prefill": (16, 512, 1), "decode": (16, 16, 64)}  # requests, prompt tokens, new tokens
LLM = None


def save_decoder(folder: str, hidden_size: int, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        vocab_size=8192,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def start(folder: str, model_impl: str, dtype: str) -> None:
    global LLM
    import vllm

    LLM = vllm.LLM(
        folder, model_impl=model_impl, dtype=dtype, skip_tokenizer_init=True, enable_prefix_caching=False,
        max_model_len=1024, seed=0,
    )  # fmt: skip


def work(name: str, seed: int) -> float:
    """Seconds for one call with prompts that are new."""
    import vllm

    requests, prompt_tokens, new_tokens = WORK[name]
    rng = random.Random(seed)
    prompts = [{"prompt_token_ids": [rng.randrange(3, 8192) for _ in range(prompt_tokens)]} for _ in range(requests)]
    params = vllm.SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    return time_call(partial(LLM.generate, prompts, params, use_tqdm=False))


def work_in(engine: ProcessPoolExecutor, name: str, seeds: Iterator[int]) -> float:
    return engine.submit(work, name, next(seeds)).result()


def main() -> None:
    parser = command_line(__doc__, dtype={"default": "float32"}, rounds={"default": 7})
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()

    result = {
        **machine("torch", "transformers"), "vllm": vllm_version(), "hidden_size": args.hidden_size,
        "layers": args.layers, "dtype": args.dtype, "rounds": args.rounds, "work": WORK,
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=context) as process:
        process.submit(save_decoder, folder, args.hidden_size, args.layers).result()
        engines = {}
        for impl in ("vllm", "transformers"):
            arguments = (folder, impl, args.dtype)
            engines[impl] = ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=arguments)
            engines[impl].submit(work, "decode", -1).result()
        for name in WORK:
            calls = {impl: partial(work_in, engine, name, count()) for impl, engine in engines.items()}
            turns = take_turns(calls, args.rounds + 1, random.Random(SEED))
            seconds = {impl: times[1:] for impl, times in turns.items()}  # the first warms up
            result[name] = {"seconds": seconds, "median": {impl: median(times) for impl, times in seconds.items()}}
            result[name] |= compare("transformers_over_vllm", seconds["transformers"], seconds["vllm"])
        for engine in engines.values():
            engine.shutdown()
    lines = [
        f"{name} | {result[name]['median']['vllm']:.3f} | {result[name]['median']['transformers']:.3f} "
        f"| {spread(result[name], 'transformers_over_vllm')}"
        for name in WORK
    ]
    markdown = table("work | vLLM, s | Transformers backend, s | Transformers backend / vLLM (rounds)", lines)
    print(markdown)
    save(result, args.output, markdown)


if __name__ == "__main__":
    main()
