"""
A web page to ask about pictures with a slider for the number of visual tokens: `make demo-web`, or

    pip install ".[demo,visual]"
    python examples/demo.py [--model FOLDER_OR_HUB_ID] [--port 7860]

Answers stream in, each with its number of visual tokens, its time and its FLOPs; with "auto" the model chooses the
number. Further tabs ask the same question at several numbers, and show where an answer comes from. The page asks no
other server for anything. What is uploaded lies in a temporary folder for an hour, or until the page ends.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from PIL import Image


REPOSITORY = Path(__file__).parents[1]
MAX_FILE_SIZE, MAX_WAITING = "20mb", 32  # visitors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), help="folder or Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--max-new-tokens", type=int, default=200, help="the longest answer")
    args = parser.parse_args(arguments)

    # Slow to import, and so after the flags.
    from demo_answers import Answerer
    from demo_page import IMAGES, STYLE, THEME, Page
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mqt_llava import MQTLlavaForConditionalGeneration
    from mqt_llava.evaluation.known_images import KnownImages

    model = AutoModelForImageTextToText.from_pretrained(args.model, device_map="auto")
    if not isinstance(model, MQTLlavaForConditionalGeneration):
        parser.error(f"--model is a {type(model).__name__}, whose number of visual tokens cannot be chosen.")
    known_images = KnownImages.load(args.model, model)
    answerer = Answerer(model, AutoProcessor.from_pretrained(args.model), args.max_new_tokens, known_images)
    # A first call is slow; no visitor should wait for it.
    answerer.answer(Image.new("RGB", (64, 64)), "Hello", 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is removed then too
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = Page(answerer).build().queue(max_size=MAX_WAITING)
        page.launch(
            server_name=args.host,
            server_port=args.port,
            allowed_paths=[str(IMAGES)],
            max_file_size=MAX_FILE_SIZE,
            run_history=False,
            footer_links=[],
            css=STYLE,
            theme=THEME,
        )


if __name__ == "__main__":
    main()
