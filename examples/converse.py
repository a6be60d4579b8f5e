"""
A conversation about one image, at a number of visual tokens that may change on the way:

    python examples/converse.py examples/images/mosaic_0.png

Each line that you type is a question; a number alone sets the visual tokens of all answers from then on; an empty line
ends it. `--example` asks four questions by itself.

The image is encoded once. All turns share one cache, of which each keeps what its prompt begins with: all of the last
turn, or, when the number of visual tokens changes, those that both numbers have in common. Answers are those of a
fresh run on the whole conversation.
"""

import argparse
import sys
from pathlib import Path


EXAMPLE = """\
1
Is there any footwear?
4
What is there most of?
16
What is in the top left?
List the items in column 1."""


class Conversation:
    """
    Questions about one image and their answers.

    Args:
        model, processor: A checkpoint's.
        image: What it is about.
        num_visual_tokens: Of the image; can be changed at any time.
    """

    def __init__(self, model, processor, image, num_visual_tokens: int):
        from mqt_llava import VisualTokenCache

        self.model, self.processor, self.num_visual_tokens = model, processor, num_visual_tokens
        self.messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        self.encoded = None
        self.cache = VisualTokenCache(config=model.config)

    def ask(self, question: str, max_new_tokens: int = 80) -> str:
        if len(self.messages) > 1:
            self.messages.append({"role": "user", "content": []})
        self.messages[-1]["content"].append({"type": "text", "text": question})
        inputs = self.processor.apply_chat_template(
            self.messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        pixel_values = inputs.pop("pixel_values")
        if self.encoded is None:
            self.encoded = self.model.get_image_features(pixel_values)
        output = self.model.generate(
            **inputs,
            num_visual_tokens=self.num_visual_tokens,
            mm_encoder_outputs={"image": self.encoded},
            past_key_values=self.cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        answer = self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--num-visual-tokens", type=int, default=16, help="at first (default: %(default)s)")
    parser.add_argument("--example", action="store_true", help="ask four questions instead of reading them")
    args = parser.parse_args()

    from PIL import Image
    from transformers import AutoProcessor

    from mqt_llava import MQTLlavaForConditionalGeneration

    model = MQTLlavaForConditionalGeneration.from_pretrained(args.model)
    processor = AutoProcessor.from_pretrained(args.model)
    most = processor.max_visual_tokens
    if not 1 <= args.num_visual_tokens <= most:
        parser.error(f"--num-visual-tokens is {args.num_visual_tokens}, but this model has 1 to {most}")
    conversation = Conversation(model, processor, Image.open(args.image), args.num_visual_tokens)
    for line in EXAMPLE.splitlines() if args.example else sys.stdin:
        line = line.strip()
        if not line:
            break
        if not line.isdecimal():
            print(f"{conversation.num_visual_tokens:>3} visual tokens  {line}  {conversation.ask(line)}", flush=True)
        elif 1 <= int(line) <= most:
            conversation.num_visual_tokens = int(line)
        else:
            print(f"This model has 1 to {most} visual tokens.", flush=True)


if __name__ == "__main__":
    main()
