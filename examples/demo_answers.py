"""
Answers about one image, streamed as they come, with what each of them took: what the web demo, demo.py, shows.

A conversation is a list of pairs of a question and its answer, about the image that the first question stands with.
"""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from transformers import StoppingCriteria, TextIteratorStreamer

from mqt_llava.evaluation.known_images import KnownImages
from mqt_llava.models.processing_compressed_llava import load_rgb
from mqt_llava.planning import request_cost


MAX_SIDE = 9000  # pixels of a picture, which is padded to a square; phones take up to 8160 x 6120
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # what browsers and cameras make
ROUNDS, SECONDS = 9, 10  # in which answers are timed: as many rounds, as long as they take no longer


@dataclass(frozen=True)
class Answer:
    """
    Args:
        text: As far as it has come.
        num_visual_tokens: What it was given with. None until an adaptive answer is complete.
        is_auto: Whether the model chose that number.
        first_word, seconds: Seconds to its first token and in all, the image's encoding included. None until known.
        flops: Of a request at that number of visual tokens; None where the decoder's costs are not known.
    """

    text: str = ""
    num_visual_tokens: int | None = None
    is_auto: bool = False
    first_word: float | None = None
    seconds: float | None = None
    flops: int | None = None

    def describe_number(self) -> str:
        """Such as "4 visual tokens"."""
        number = f"{self.num_visual_tokens} visual token" + ("" if self.num_visual_tokens == 1 else "s")
        return number + (", chosen by auto" if self.is_auto else "")

    def describe(self) -> str:
        """Such as "4 visual tokens · 0.052 GFLOPs · first word after 11 ms, whole answer after 35 ms"."""
        parts = [self.describe_number()]
        if self.flops is not None:  # the levels below the chosen one are in its time, but not in its FLOPs
            parts.append(f"{self.flops / 1e9:.3g} GFLOPs" + (" at that number" if self.is_auto else ""))
        times = [f"{1000 * seconds:.0f} ms" for seconds in (self.first_word, self.seconds)]
        return " · ".join([*parts, "first word after {}, whole answer after {}".format(*times)])


class Watch(StoppingCriteria):
    """Notes when the first token comes, and ends an answer that nobody waits for any more."""

    def __init__(self):
        self.start, self.first_word, self.is_cancelled = time.perf_counter(), None, threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        if self.first_word is None:
            self.first_word = time.perf_counter() - self.start
        return torch.full((len(input_ids),), self.is_cancelled.is_set(), device=input_ids.device)


class Answerer:
    """
    Args:
        model, processor: A checkpoint's.
        max_new_tokens: The longest answer.
        known_images: The images that the model was trained on, where they are few kinds.
    """

    def __init__(self, model, processor, max_new_tokens: int = 200, known_images: KnownImages | None = None):
        self.model, self.processor, self.max_new_tokens = model.eval(), processor, max_new_tokens
        self.max_visual_tokens = model.config.max_visual_tokens
        self.known_images = known_images

    def is_known(self, image: Image.Image) -> bool:
        """Whether the picture is like those that the model was trained on; about others it can only guess."""
        if self.known_images is None:
            return True
        distances = self.known_images.distances(self.model, self.processor.image_processor, [image])
        return bool(distances <= self.known_images.threshold)

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
        seconds, (outputs,), is_auto = time.perf_counter() - watch.start, results, num_visual_tokens == "auto"
        used = outputs.visual_token_level.item() if is_auto else num_visual_tokens
        new_tokens = outputs.sequences.shape[1] - inputs["input_ids"].shape[1]
        flops = self.flops(text_tokens, new_tokens, used)
        yield Answer(text.strip(), used, is_auto, watch.first_word, seconds, flops)

    def answer(self, image: Image.Image, question: str, num_visual_tokens: int | str) -> Answer:
        """As [`stream`], the complete answer, without a conversation."""
        *_, answer = self.stream(image, [], question, num_visual_tokens)
        return answer

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

    def compare(
        self, image: Image.Image, question: str, numbers: Sequence[int | str]
    ) -> Iterator[tuple[list[Answer], int]]:
        """
        The answers at several numbers of visual tokens, as they come; then their times.

        A first round of answers is not timed, since first calls are slow. Then all are given again and again, in
        turn and every other time the other way round, so that what else the computer does meets all of them alike; a
        time is the median over these rounds.

        Returns:
            The answers so far, and over how many rounds their times are.
        """
        answers, rounds = [], []
        for number in numbers:
            answers.append(replace(self.answer(image, question, number), first_word=None, seconds=None))
            yield list(answers), 0
        start = time.perf_counter()
        while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - start < SECONDS):
            turn = 1 if len(rounds) % 2 else -1
            rounds.append([self.answer(image, question, number) for number in numbers[::turn]][::turn])
        timed = []
        for answer, *again in zip(answers, *rounds):
            first_word = statistics.median(other.first_word for other in again)
            timed.append(replace(answer, first_word=first_word, seconds=statistics.median(o.seconds for o in again)))
        yield timed, len(rounds)
