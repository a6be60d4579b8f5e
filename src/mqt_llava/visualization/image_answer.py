"""An answer about an image, which was encoded once, and how probable it is at any number of visual tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..models.configuration_compressed_llava import check_num_visual_tokens
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.processing_mqt_llava import MQTLlavaProcessor


@dataclass
class ImageAnswer:
    """
    An image, a question and an answer, tokenised and encoded. [`ImageAnswer.ask`] makes one.

    Args:
        model: In evaluation mode.
        prompt_ids: The question with M placeholders, `(length,)`.
        answer_ids: `(answer tokens,)`.
        patches: What the query transformer compresses, the vision tower's patch features, `(1, patches, width)`.
        blank_patches: The same of an image that is all padding, to compare with.
        tokens: The answer token by token, to read.
    """

    model: MQTLlavaForConditionalGeneration
    prompt_ids: torch.Tensor
    answer_ids: torch.Tensor
    patches: torch.Tensor
    blank_patches: torch.Tensor
    tokens: list[str]

    @classmethod
    @torch.no_grad()
    def ask(
        cls,
        model: MQTLlavaForConditionalGeneration,
        processor: MQTLlavaProcessor,
        image: Image.Image,
        question: str,
        answer: str | None = None,
        max_new_tokens: int = 64,
    ) -> "ImageAnswer":
        """
        Asks a question about an image.

        Args:
            image: One image, in any form that the processor takes.
            answer: The answer to look into. By default the model's own, greedily decoded with all M visual tokens.
            max_new_tokens: The longest answer the model may give.

        Raises:
            TypeError: The model has no query transformer whose tokens nest.
            ValueError: The answer is empty, or changes how the question is tokenised.
        """
        if not isinstance(model, MQTLlavaForConditionalGeneration):
            raise TypeError(f"`model` is a {type(model).__name__}, but must be an MQTLlavaForConditionalGeneration.")
        asked: list[dict] = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
        ]

        def tokenise(messages: list[dict], **kwargs: Any) -> BatchFeature:
            return processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"num_visual_tokens": model.config.max_visual_tokens},
                **kwargs,
            ).to(model.device)

        inputs = tokenise(asked, add_generation_prompt=True)
        prompt_ids, pixel_values = inputs["input_ids"][0], inputs["pixel_values"]
        if answer is None:
            sequences: Any = model.generate(
                **inputs,
                num_visual_tokens=model.config.max_visual_tokens,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=False,
            )
            answer_ids = sequences[0, len(prompt_ids) :]
        else:
            answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            token_ids = tokenise(answered)["input_ids"][0]
            if not answer.strip() or not torch.equal(token_ids[: len(prompt_ids)], prompt_ids):
                raise ValueError(f"`answer` is {answer!r}, but must be text that can stand after the question.")
            answer_ids = token_ids[len(prompt_ids) :]
        # Normalised pixels of 0 are the mean colour, which is what pads images to squares.
        pictures = torch.cat([pixel_values, torch.zeros_like(pixel_values)])
        patches, blank_patches = model.model.encode_patches(pictures)[1][0].split(1)
        tokens = [processor.decode(token_id).strip() for token_id in answer_ids]
        return cls(model, prompt_ids, answer_ids, patches, blank_patches, tokens)

    def visual_tokens(self, patches: torch.Tensor, num_visual_tokens: int) -> torch.Tensor:
        """
        The first m visual tokens of images, `(images, m, hidden_size)`.

        Raises:
            TypeError, ValueError: m is no integer in 1..M.
        """
        (num_visual_tokens,) = check_num_visual_tokens(
            num_visual_tokens, self.model.config.max_visual_tokens, num_images=1
        )
        return self.model.model.resampler(patches, num_visual_tokens=num_visual_tokens)

    def logits(self, visual_tokens: torch.Tensor) -> torch.Tensor:
        """
        Scores from which each token of the answer is drawn, given the question, the image and the tokens before it.

        Args:
            visual_tokens: Of one or several images, `(images, m, hidden_size)`; the question is asked about each.

        Returns:
            `(images, answer tokens, vocabulary)`, at least float32.
        """
        is_placeholder = self.prompt_ids == self.model.config.image_token_id
        is_kept = ~is_placeholder | (is_placeholder.cumsum(0) <= visual_tokens.shape[1])
        input_ids = torch.cat([self.prompt_ids[is_kept], self.answer_ids]).expand(len(visual_tokens), -1)
        encoded: Any = list(visual_tokens)
        logits = self.model(
            input_ids=input_ids,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=encoded)},
            logits_to_keep=len(self.answer_ids) + 1,
            use_cache=False,
        ).logits[:, :-1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def log_probabilities(self, visual_tokens: torch.Tensor) -> torch.Tensor:
        """As [`logits`], the log-probability of each token of the answer, `(images, answer tokens)`."""
        answer_ids = self.answer_ids.expand(len(visual_tokens), -1)
        return self.logits(visual_tokens).log_softmax(-1).gather(-1, answer_ids[..., None])[..., 0]

    def check_answer_tokens(self, answer_tokens: Sequence[int] | int | None) -> list[int]:
        """Indices of tokens of the answer, all of them for `None`; one outside of it is an error."""
        if answer_tokens is None:
            return list(range(len(self.tokens)))
        chosen = [answer_tokens] if isinstance(answer_tokens, int) else list(answer_tokens)
        if not chosen or not all(0 <= index < len(self.tokens) for index in chosen):
            raise ValueError(
                f"`answer_tokens` is {answer_tokens!r}, but must be among 0..{len(self.tokens) - 1}: the answer's "
                f"tokens are {self.tokens}."
            )
        return chosen
