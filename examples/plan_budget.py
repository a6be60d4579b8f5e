"""
What a request costs at several numbers of visual tokens, and the most that fit into limits:

    python examples/plan_budget.py --model model_cards/mqt-llava-tiny --text-tokens 40 --new-tokens 20 --flops 1.5e8
    python examples/plan_budget.py --seconds 0.1

Reads the configuration alone; only for `--seconds` the model is loaded and timed.
"""

import argparse
from pathlib import Path


REPOSITORY = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), help="folder or Hub id")
    parser.add_argument("--text-tokens", type=int, default=60, help="of the prompt, special tokens included")
    parser.add_argument("--new-tokens", type=int, default=1, help="of the answer")
    parser.add_argument("--num-images", type=int, default=1)
    parser.add_argument(
        "--num-visual-tokens", type=int, nargs="+", help="rows of the table; by default powers of two, and M"
    )
    parser.add_argument("--flops", type=float, help="the most FLOPs of a request")
    parser.add_argument("--kv-bytes", type=float, help="the most bytes of its KV cache")
    parser.add_argument("--seconds", type=float, help="the longest it may take on this machine")
    args = parser.parse_args(arguments)

    # Slow to import, and so after the flags.
    from transformers import AutoConfig, AutoModelForImageTextToText

    from mqt_llava import MQTLlavaConfig
    from mqt_llava.planning import largest_num_visual_tokens, measure_profile, request_cost

    config, profile = AutoConfig.from_pretrained(args.model), None
    if not isinstance(config, MQTLlavaConfig):
        parser.error(f"--model is a {config.model_type!r}, whose number of visual tokens cannot be chosen")
    if args.seconds is not None:
        profile = measure_profile(AutoModelForImageTextToText.from_pretrained(args.model))
    largest = config.max_visual_tokens
    budgets = args.num_visual_tokens or sorted({2**power for power in range(largest.bit_length())} | {largest})
    request = {"text_tokens": args.text_tokens, "new_tokens": args.new_tokens, "num_images": args.num_images}

    print("|   m | images, FLOPs | prefill, FLOPs | decode, FLOPs | total, FLOPs | KV cache, bytes | seconds |")
    print("|-----|---------------|----------------|---------------|--------------|-----------------|---------|")
    for m in budgets:
        cost = request_cost(config, num_visual_tokens=m, **request)
        images = cost.flops.vision_tower + cost.flops.compressor
        seconds = f"{profile.seconds(cost):.4f}" if profile else "-"
        print(
            f"| {m:3} | {images:13.3e} | {cost.flops.prefill:14.3e} | {cost.flops.decode:13.3e} "
            f"| {cost.flops.total:12.3e} | {cost.kv_bytes:15,} | {seconds:>7} |"
        )

    limits = {"flops": args.flops, "kv_bytes": args.kv_bytes, "seconds": args.seconds}
    if any(limit is not None for limit in limits.values()):
        try:
            most = largest_num_visual_tokens(config, **limits, profile=profile, **request)
            print(f"\nLargest m within limits: {most}")
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
