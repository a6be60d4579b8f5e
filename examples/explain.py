"""
Shows where an answer comes from, what each query looks at, and what more visual tokens change:

    python examples/explain.py --image examples/images/mosaic_0.png --question "List the items in the second row."

Saves heatmaps.png (a row for each of the answer's tokens that the budget matters most to), visual_tokens.png (the
answer through one visual token at a time), queries.png, coverage.png and changes.png. Needs `pip install ".[visual]"`,
and takes about ten seconds with the embedded checkpoint.
`--output docs/images/explain` alone makes the documentation's figures again.
"""

import argparse
from pathlib import Path

from tqdm import tqdm


REPOSITORY = Path(__file__).parents[1]
METHODS = ("integrated_gradients", "grad_cam")
STEPS = 16  # of integrated gradients: no difference to more of them can be seen
SMALL = 10_000_000  # parameters; threads wait for each other longer than they compute in such a model's matrices


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), help="folder or Hub id")
    parser.add_argument("--image", type=Path, default=REPOSITORY / "examples" / "images" / "mosaic_0.png")
    parser.add_argument("--question", default="List the items in the second row.")
    parser.add_argument("--answer", help="explain this answer instead of the model's own")
    parser.add_argument(
        "--num-visual-tokens", type=int, nargs="+", default=[1, 2, 4, 16], help="two or more, ascending"
    )
    parser.add_argument("--answer-tokens", type=int, nargs="+", help="rows of heatmaps.png, counted from 0")
    parser.add_argument("--visual-tokens", type=int, nargs="+", default=[0, 1, 4, 6], help="rows of visual_tokens.png")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "explain")
    args = parser.parse_args(argv)

    print("Loading the model ...", flush=True)
    # Slow to import, and so after the flags.
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mqt_llava import visualization as visual
    from mqt_llava.models.processing_compressed_llava import load_rgb
    from mqt_llava.plotting import save_figure
    from mqt_llava.visualization.figures import distinct

    try:
        image, budgets = load_rgb(args.image, index=0), args.num_visual_tokens
    except ValueError as error:
        parser.error(f"--image: {args.image} cannot be read: {error.__cause__ or error}")
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)
    answer = visual.ImageAnswer.ask(model, processor, image, args.question, args.answer)
    # The end of an answer is nowhere in the image.
    words = answer.tokens[:-1] if answer.answer_ids[-1] == processor.tokenizer.eos_token_id else answer.tokens
    if not words:
        parser.error("the model's answer is empty: there is nothing to explain but an --answer of yours")
    probabilities = visual.probabilities_by_num_visual_tokens(answer, budgets)[:, : len(words)]
    args.answer_tokens = args.answer_tokens or sorted(visual.largest_changes(probabilities[[0, -1]], 4)[0])
    total = len(args.answer_tokens) * len(budgets) + sum(token < m for token in args.visual_tokens for m in budgets)
    progress = tqdm(total=total, desc="heatmaps")

    def heat(budget, **target):
        heatmap = visual.answer_heatmap(answer, budget, **target, method=args.method, steps=STEPS)
        progress.update()
        return visual.heat_over_image(heatmap, processor.image_processor, *image.size)

    columns = [f"{budget} visual token{'s' * (budget > 1)}" for budget in budgets]
    with progress:
        by_answer_token = [[heat(m, answer_tokens=token) for m in budgets] for token in args.answer_tokens]
        by_visual_token = [
            [heat(m, visual_token=token) if token < m else None for m in budgets] for token in args.visual_tokens
        ]
    names = distinct(answer.tokens)
    names = [names[token] for token in args.answer_tokens]
    maps = visual.query_maps(model)
    title = f"{args.question}   Answer: {processor.decode(answer.answer_ids, skip_special_tokens=True).strip()}"
    scale = "added to the word's log-probability" if args.method == METHODS[0] else args.method
    through = [f"through token {token}" for token in args.visual_tokens]
    figures = {
        "heatmaps": lambda: visual.draw_heatmaps(image, by_answer_token, names, columns, title, scale),
        "visual_tokens": lambda: visual.draw_heatmaps(image, by_visual_token, through, columns, title, scale),
        "queries": lambda: visual.draw_queries(maps[:8, :8]),
        "coverage": lambda: visual.draw_coverage(maps, budgets),
        "changes": lambda: visual.draw_changes(words, probabilities, budgets, title=title),
    }
    for name, draw in figures.items():
        save_figure(draw(), args.output / f"{name}.png")
        print(f"Saved {args.output / name}.png")


if __name__ == "__main__":
    main()
