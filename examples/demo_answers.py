"""
Answers about one image, streamed as they come, with what each of them took: what the web demo, demo.py, shows.

A conversation is a list of pairs of a question and its answer, about the image that the first question stands with.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import StoppingCriteria, TextIteratorStreamer

from mqt_llava.models.processing_compressed_llava import load_rgb
from mqt_llava.planning import request_cost


MAX_SIDE = 9000  # pixels of a picture, which is padded to a square; phones take up to 8160 x 6120
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # what browsers and cameras make
HEATMAP_TOKENS = 4  # of an answer
DRAWN_SIDE = 800  # pixels of the picture under a heatmap


@dataclass(frozen=True)
class Answer:
    """
    Args:
        text: As far as it has come.
        num_visual_tokens: What it was given with. None until an adaptive answer is complete.
        first_token, seconds: Seconds to its first token and in all, the image's encoding included.
        flops: Of a request at that number of visual tokens; None where the decoder's costs are not known.
    """

    text: str = ""
    num_visual_tokens: int | None = None
    first_token: float | None = None
    seconds: float | None = None
    flops: int | None = None

    def describe(self) -> str:
        """Such as "4 visual tokens · first token after 11 ms, all after 35 ms · 0.052 GFLOPs"."""
        plural = "" if self.num_visual_tokens == 1 else "s"
        text = f"{self.num_visual_tokens} visual token{plural} · first token after {1000 * self.first_token:.0f} ms"
        text += f", all after {1000 * self.seconds:.0f} ms"
        return text if self.flops is None else text + f" · {self.flops / 1e9:.3g} GFLOPs"


class Watch(StoppingCriteria):
    """Notes when the first token comes, and ends an answer that nobody waits for any more."""

    def __init__(self):
        self.start, self.first_token, self.is_cancelled = time.perf_counter(), None, threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.start
        return torch.full((len(input_ids),), self.is_cancelled.is_set(), device=input_ids.device)


class Answerer:
    """
    Args:
        model, processor: A checkpoint's.
        max_new_tokens: The longest answer.
    """

    def __init__(self, model, processor, max_new_tokens: int = 200):
        self.model, self.processor, self.max_new_tokens = model.eval(), processor, max_new_tokens
        self.max_visual_tokens = model.config.max_visual_tokens

    def read_image(self, path: str) -> Image.Image:
        """
        Raises:
            ValueError: The file is gone, cannot be read, or has a side of more than `MAX_SIDE`.
        """
        try:
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
        except FileNotFoundError:
            raise ValueError("This picture has been deleted in the meantime: choose it again.") from None
        except Exception as error:  # damaged files make decoders raise anything
            raise ValueError("This file cannot be read as an image. Try a PNG, JPEG or WebP file.") from error
        if max(width, height) > MAX_SIDE:
            raise ValueError(f"This image has {width} x {height} pixels; no side may have more than {MAX_SIDE}.")
        try:
            return load_rgb(path, index=0)
        except ValueError as error:
            raise ValueError("This image is damaged: its file ends or breaks off too early.") from error

    def encode(self, image: Image.Image, turns: Sequence[tuple[str, str]], question: str) -> tuple[dict, int]:
        """
        The prompt with M placeholders, and how many of its tokens are text.

        Raises:
            ValueError: The question is empty, or no room is left for its answer.
        """
        if not question.strip():
            raise ValueError("Ask a question first.")
        messages = []
        for asked, answered in [*turns, (question, None)]:
            messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
            if answered is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answered}]})
        messages[0]["content"].insert(0, {"type": "image", "image": image})
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"num_visual_tokens": self.max_visual_tokens},
        ).to(self.model.device)
        length, longest = inputs["input_ids"].shape[1], self.model.config.text_config.max_position_embeddings
        if length + self.max_new_tokens > longest:
            raise ValueError(
                f"This is too long: {length} tokens and {self.max_new_tokens} for an answer, but the model reads "
                f"{longest}. Start a new conversation, or ask a shorter question."
            )
        return inputs, length - self.max_visual_tokens

    def stream(
        self, image: Image.Image, turns: Sequence[tuple[str, str]], question: str, num_visual_tokens: int | str
    ) -> Iterator[Answer]:
        """
        The answer as it grows. Closing the iterator ends the computation.

        Args:
            turns: What has been said about the image before.
            num_visual_tokens: 1..M, or "auto".

        Raises:
            TypeError, ValueError: There is no such number, no question, or no room for an answer.
        """
        watch = Watch()
        inputs, text_tokens = self.encode(image, turns, question)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        results, errors = [], []

        def generate():
            try:
                outputs = self.model.generate(
                    **inputs,
                    num_visual_tokens=num_visual_tokens,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    return_dict_in_generate=True,
                    streamer=streamer,
                    stopping_criteria=[watch],
                )
                results.append(outputs)
            except Exception as error:  # raised again where it is waited for
                errors.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=generate)
        thread.start()
        text = ""
        try:
            for piece in streamer:
                text += piece
                yield Answer(text)
        finally:
            watch.is_cancelled.set()
            thread.join()
        if errors:
            raise errors[0]
        seconds, (outputs,) = time.perf_counter() - watch.start, results
        used = outputs.visual_token_level.item() if num_visual_tokens == "auto" else num_visual_tokens
        new_tokens = outputs.sequences.shape[1] - inputs["input_ids"].shape[1]
        yield Answer(text.strip(), used, watch.first_token, seconds, self.flops(text_tokens, new_tokens, used))

    def flops(self, text_tokens: int, new_tokens: int, num_visual_tokens: int) -> int | None:
        try:
            cost = request_cost(
                self.model.config,
                text_tokens=text_tokens,
                new_tokens=new_tokens,
                num_visual_tokens=num_visual_tokens,
            )
        except ValueError:  # a kind of decoder that the planner does not know
            return None
        return cost.flops.total

    def compare(self, image: Image.Image, question: str, budgets: Sequence[int]) -> Iterator[Answer]:
        """The answer at each number of visual tokens, ascending, without a conversation."""
        for budget in sorted(set(budgets)):
            *_, answer = self.stream(image, [], question, budget)
            yield answer

    def heatmap(self, image: Image.Image, question: str, num_visual_tokens: int):
        """
        Where the first words of the answer at this number of visual tokens come from.

        Returns:
            A matplotlib figure and the answer's text.

        Raises:
            ImportError: `pip install "mqt_llava[visual]"` is missing.
            ValueError: There is no answer to explain.
        """
        from mqt_llava import visualization as visual

        (answer,) = self.compare(image, question, [num_visual_tokens])
        if not answer.text:
            raise ValueError("The model gave no answer that could be explained.")
        explained = visual.ImageAnswer.ask(self.model, self.processor, image, question, answer.text)
        words = [index for index, token in enumerate(explained.tokens) if any(map(str.isalnum, token))]
        words = [index for index in words if index < len(explained.tokens) - 1][:HEATMAP_TOKENS]  # not the end

        drawn = image.copy()
        drawn.thumbnail((DRAWN_SIDE, DRAWN_SIDE))

        def heat(index):
            heatmap = visual.answer_heatmap(explained, num_visual_tokens, index)
            return visual.heat_over_image(heatmap, self.processor.image_processor, *drawn.size)

        names = [explained.tokens[index] for index in words]
        title = f"{question}   (m = {num_visual_tokens})"
        return visual.draw_heatmaps(drawn, [list(map(heat, words))], [""], names, title, "nats per patch"), answer.text
