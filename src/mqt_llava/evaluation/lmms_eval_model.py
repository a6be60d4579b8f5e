"""
A model of this package as lmms-eval's model `mqt_llava`:

    lmms-eval --model mqt_llava --model_args pretrained=model_cards/mqt-llava-tiny,num_visual_tokens=16 --tasks ...

Questions that need as much of an answer are answered in batches, the longest first. Every answer goes to an
`AnswerLog` at once, so that a run that is killed goes on from there.
"""

import time
from collections import Counter, defaultdict
from typing import NoReturn

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import mqt_llava  # noqa: F401  registers the models

from .answer_log import Answer, AnswerLog, answer_key
from .arguments import check_batch_size, check_num_visual_tokens_or_auto, sampling


class MQTLlava(lmms):
    """
    Args:
        pretrained: Folder or Hub id of a checkpoint of this package.
        num_visual_tokens: Of each image: 1..M, or `"auto"` for as many as each question needs. By default, the
            checkpoint's own number.
        batch_size: Questions answered at once, by each process.
        device: By default, that of accelerate's process.
        dtype: Of the weights, as in `from_pretrained`: "auto" for the checkpoint's own, "bfloat16", ...
        attn_implementation: As in `from_pretrained`.
        revision: Of a checkpoint on the Hub.
        max_new_tokens: Of an answer, for tasks that do not say.
        answers: Folder for the log of answers. Those that it holds already are not computed again.

    Raises:
        TypeError, ValueError: `batch_size` is no positive integer, or `num_visual_tokens` not possible.
    """

    is_simple = False  # questions come as chat messages

    def __init__(
        self,
        pretrained: str,
        num_visual_tokens: int | str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        revision: str = "main",
        max_new_tokens: int = 1024,
        answers: str | None = None,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device or self.accelerator.device)
        self.batch_size = check_batch_size(batch_size)
        self.max_new_tokens = max_new_tokens
        self.identity = [pretrained, revision, dtype]
        model = AutoModelForImageTextToText.from_pretrained(
            pretrained, revision=revision, dtype=dtype, attn_implementation=attn_implementation
        )
        self.model = model.eval().to(self.device)
        self.config = model.config
        self.processor = AutoProcessor.from_pretrained(pretrained, revision=revision)
        self.set_num_visual_tokens(num_visual_tokens, answers)

    def set_num_visual_tokens(self, num_visual_tokens: int | str | None, answers: str | None = None) -> None:
        """Another number of visual tokens from here on, and another folder for the log."""
        if num_visual_tokens is None:  # the model's own goes before the processor's, as in `generate`
            num_visual_tokens = getattr(self.model.generation_config, "num_visual_tokens", None)
        self.num_visual_tokens = check_num_visual_tokens_or_auto(num_visual_tokens, self.config)
        self.log = AnswerLog(answers, self.rank)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """One answer per request, in their order."""
        keys = self._keys(requests)
        open_requests = {key: request for key, request in zip(keys, requests) if key and key not in self.log}
        progress = tqdm(total=len(open_requests), disable=self.rank != 0, desc="Answers")
        for batch in self._batches(open_requests):
            self.log.add(self._answer(batch))
            progress.update(len(batch))
        progress.close()
        return [self._result(key) for key in keys]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("mqt_llava answers tasks of the kind generate_until, not loglikelihood.")

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError("mqt_llava answers tasks of the kind generate_until, not of several rounds.")

    def _keys(self, requests: list[Instance]) -> list[str | None]:
        """
        None for requests that only make all processes have equally many, which `generate` does not need. Repeats of a
        question are told apart by their number.
        """
        keys: list[str | None] = []
        seen: Counter[str] = Counter()
        for request in requests:
            context, _, options, doc_id, task, split = request.args
            if (request.metadata or {}).get("__padding_only__"):
                keys.append(None)
                continue
            settings = [*self.identity, self.num_visual_tokens, self.max_new_tokens]
            key = answer_key(settings, task, split, doc_id, context, options)
            seen[key] += 1
            keys.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
        return keys

    def _batches(self, requests: dict[str, Instance]) -> list[list[tuple[str, Instance]]]:
        groups = defaultdict(list)
        for key, request in requests.items():
            groups[answer_key(request.args[2])].append((key, request))
        batches = []
        for group in groups.values():
            group.sort(key=lambda item: -len(item[1].args[0]))
            batches += [group[start : start + self.batch_size] for start in range(0, len(group), self.batch_size)]
        return batches

    def _messages(self, request: Instance) -> list[dict]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        kinds = {block["type"] for message in messages for block in message["content"]} - {"image", "text"}
        if kinds:
            raise ValueError(
                f"Task {task!r} shows {', '.join(sorted(kinds))}, but mqt_llava only reads images and text."
            )
        return messages

    @torch.inference_mode()
    def _answer(self, batch: list[tuple[str, Instance]]) -> list[Answer]:
        started = time.perf_counter()
        chats = [self._messages(request) for _, request in batch]
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        options = batch[0][1].args[2]
        sampled, stops = sampling(options, self.max_new_tokens)
        if self.num_visual_tokens is not None:
            sampled["num_visual_tokens"] = self.num_visual_tokens
        outputs = self.model.generate(**inputs, **sampled, return_dict_in_generate=True)
        generated = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(generated, skip_special_tokens=True)
        placeholders = (inputs["input_ids"] == self.config.image_token_id).sum(1)
        text_tokens = inputs["attention_mask"].sum(1) - placeholders
        seconds = (time.perf_counter() - started) / len(batch)

        answers = []
        for row, (key, request) in enumerate(batch):
            images = sum(block["type"] == "image" for message in chats[row] for block in message["content"])
            if "visual_token_level" in outputs:
                each = int(outputs["visual_token_level"][row])
            else:
                each = int(self.num_visual_tokens or int(placeholders[row]) // max(images, 1))
            answers.append(
                Answer(
                    key=key,
                    task=request.args[4],
                    doc_id=request.args[3],
                    text=cut_at(texts[row], stops).strip(),
                    visual_tokens=[each] * images,
                    text_tokens=int(text_tokens[row]),
                    new_tokens=self._length(generated[row]),
                    seconds=round(seconds, 6),
                )
            )
        return answers

    def _length(self, tokens: torch.Tensor) -> int:
        """Tokens up to the first that ends an answer, with it."""
        ends = self.model.generation_config.eos_token_id
        is_end = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
        return int(is_end.int().argmax()) + 1 if is_end.any() else len(tokens)

    def _result(self, key: str | None) -> GenerationResult:
        if key is None:
            return GenerationResult("")
        answer = self.log[key]
        counts = TokenCounts(answer.text_tokens + sum(answer.visual_tokens), answer.new_tokens)
        return GenerationResult(answer.text, counts)


def cut_at(text: str, stops: list[str]) -> str:
    """What stands before the first of the texts that end an answer."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
