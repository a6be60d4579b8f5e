"""
A conversation about one image that is encoded and read once, at a number of visual tokens that may grow on the way:

    python examples/converse.py examples/images/mosaic_0.png

Answers are those of a fresh run on the whole conversation. Of the cache everything is kept up to where the new prompt
departs from the old one: all of the last turn, or, when the image gets more tokens, the ones that it had.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, DynamicCache

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.climb_mqt_llava import run_decoder


class Conversation:
    """
    Questions about one image and their answers.

    Args:
        model, processor: A checkpoint's. The decoder's cache must be one that can be cropped.
        image: What it is about.
        num_visual_tokens: At first.
    """

    def __init__(self, model, processor, image: Image.Image, num_visual_tokens: int):
        self.model, self.processor, self.num_visual_tokens = model, processor, num_visual_tokens
        self.messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
        self.encoded = None
        self.cache, self.cached_ids = DynamicCache(config=model.config.get_text_config(decoder=True)), torch.tensor([])

    @torch.no_grad()
    def ask(self, question: str, num_visual_tokens: int | None = None, max_new_tokens: int = 80) -> str:
        """
        Args:
            question: The next one.
            num_visual_tokens: From now on; at least as many as before.
            max_new_tokens: Of the answer.

        Raises:
            ValueError: Fewer visual tokens than before.
        """
        if num_visual_tokens is not None and num_visual_tokens < self.num_visual_tokens:
            raise ValueError(
                f"`num_visual_tokens` is {num_visual_tokens}, but the image has {self.num_visual_tokens} already: "
                "it can get more, not fewer."
            )
        seen, self.num_visual_tokens = self.num_visual_tokens, num_visual_tokens or self.num_visual_tokens
        if len(self.messages) > 1:
            self.messages.append({"role": "user", "content": []})
        self.messages[-1]["content"].append({"type": "text", "text": question})
        inputs = self.processor.apply_chat_template(
            self.messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"num_visual_tokens": self.num_visual_tokens},
        ).to(self.model.device)
        pixel_values, ids = inputs.pop("pixel_values"), inputs["input_ids"]
        if self.encoded is None:
            self.encoded = self.model.get_image_features(pixel_values)

        # An answer that is read again may be other tokens than those that were generated.
        length = min(len(self.cached_ids), ids.shape[1] - 1)
        same = (self.cached_ids[:length] == ids[0, :length]).long().cumprod(0).sum().item()
        self.cache.crop(same - self.cache.get_seq_length())
        if 0 < seen < self.num_visual_tokens and same:
            (tokens,) = self.encoded.pooler_output
            new = ids[:, same : same + self.num_visual_tokens - seen]
            mask = inputs["attention_mask"][:, : same + new.shape[1]]
            run_decoder(self.model, new, mask, self.cache, [tokens[seen : self.num_visual_tokens]])
        self.cache.visual_token_counts = [[self.num_visual_tokens]]
        outputs = self.model.generate(
            **inputs,
            mm_encoder_outputs={"image": self.encoded},
            past_key_values=self.cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        self.cached_ids = outputs[0, : self.cache.get_seq_length()]
        answer = self.processor.decode(outputs[0, ids.shape[1] :], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "model_cards" / "mqt-llava-tiny"))
    args = parser.parse_args()
    model = MQTLlavaForConditionalGeneration.from_pretrained(args.model)
    conversation = Conversation(model, AutoProcessor.from_pretrained(args.model), Image.open(args.image), 1)
    for question, num_visual_tokens in (
        ("Is there any footwear?", 1),
        ("What is there most of?", 4),
        ("What is in the top left?", 16),
        ("List the items in column 1.", 16),
    ):
        print(f"{num_visual_tokens:>3} visual tokens  {question}  {conversation.ask(question, num_visual_tokens)}")


if __name__ == "__main__":
    main()
