"""
Asks an OpenAI-compatible server about a picture, at several numbers of visual tokens:

    python -m vllm.entrypoints.openai.api_server --model model_cards/mqt-llava-tiny --trust-request-mm-kwargs
    python examples/serve/ask_server.py --image examples/images/mosaic_0.png --question "List the items in column 1."
"""

import argparse
import base64
import mimetypes
from pathlib import Path


def ask(client, args) -> None:
    kind = mimetypes.guess_type(args.image)[0]
    data = base64.b64encode(args.image.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": args.question}]}]
    model = client.models.list().data[0].id
    for budget in args.num_visual_tokens:
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=0,
            stream=True,
            extra_body={"mm_processor_kwargs": {"num_visual_tokens": budget}},
        )
        print(f"{budget:>4}  ", end="")
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--question", required=True)
    parser.add_argument("--num-visual-tokens", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args(argv)
    if not args.image.is_file():
        parser.error(f"--image: there is no file {args.image}")
    try:
        import openai
    except ImportError:
        raise SystemExit("This client needs openai: pip install openai") from None
    try:
        ask(openai.OpenAI(base_url=args.url, api_key="none"), args)
    except openai.APIConnectionError as error:
        raise SystemExit(f"There is no server at {args.url}: {error}") from None
    except openai.APIStatusError as error:
        raise SystemExit(f"The server at {args.url} refuses: {error}") from None


if __name__ == "__main__":
    main()
