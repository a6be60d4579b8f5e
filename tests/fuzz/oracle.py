"""
What a model must answer: one row at a time, without a cache, without padding, with visual tokens of the oracle's own.

An answer is read once behind its prompt. Since attention is causal, each position's logits are those that its token
had to be chosen from, so that every token is judged by itself, also behind a near-tie.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .oracle_visual_tokens import mqt_visual_tokens, quecc_visual_tokens
from .outcomes import Outcome, wrong
from .rows import Image, Row


NEAR_TIE = 1e-4  # of logits that are a few units apart


@dataclass
class Oracle:
    """
    Args:
        model: Whose weights to use; of its code only vision tower and decoder, which are transformers'.
        pool: Pixels of all images that there are, `(images, 3, height, width)`.
    """

    model: torch.nn.Module
    pool: Tensor
    tie: float = NEAR_TIE
    _visual_tokens: dict = field(default_factory=dict)

    @property
    def is_quecc(self) -> bool:
        return self.model.config.model_type == "quecc_llava"

    def visual_tokens(self, image: Image) -> Tensor:
        key = image if self.is_quecc else image.index
        if key not in self._visual_tokens:
            pixels = self.pool[image.index]
            if self.is_quecc:
                self._visual_tokens[key] = quecc_visual_tokens(self.model, pixels, image.question)
            else:
                self._visual_tokens[key] = mqt_visual_tokens(self.model, pixels)
        return self._visual_tokens[key]

    @torch.no_grad()
    def logits(self, row: Row, counts: list[int], answer: list[int] = ()) -> Tensor:
        """Behind the prompt and behind each token of the answer, `(1 + answer, vocabulary)`."""
        embed, counts, parts = self.model.get_input_embeddings(), iter(counts), []
        for piece in [*row, *answer]:
            if isinstance(piece, Image):
                parts.append(self.visual_tokens(piece)[: next(counts)])
            else:
                parts.append(embed(torch.tensor([piece])))
        states = self.model.model.language_model(inputs_embeds=torch.cat(parts)[None], use_cache=False)
        logits = self.model.lm_head(states.last_hidden_state[0, -1 - len(answer) :])
        logits[:, self.model.config.image_token_id] = -torch.inf  # never an answer
        return logits

    def judge(
        self,
        row: Row,
        counts: list[int],
        answer: list[int],
        num_new: int,
        eos: tuple[int, ...] = (),
        noise: Tensor | None = None,
    ) -> Outcome:
        """
        An answer to one prompt, chosen greedily.

        Args:
            counts: Visual tokens of its images.
            answer: With padding behind its end.
            num_new: The most tokens that it may have.
            eos: Tokens that end it.
            noise: `(num_new, vocabulary)`, added to the logits before the best one is taken.
        """
        length = next((i + 1 for i, token in enumerate(answer) if token in eos), len(answer))
        if any(answer[length:]):
            return wrong(f"{answer[length:]} stands behind the end of the answer")
        ended = bool(length) and answer[length - 1] in eos
        if not length or (length != num_new and not ended):
            return wrong(f"{length} tokens instead of {num_new}")
        answer = answer[:length]
        scores = self.logits(row, counts, answer[:-1])
        if noise is not None:
            scores = scores + noise[:length]
        chosen = scores.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        lead = scores.max(-1).values - chosen
        if lead.max() > self.tie:
            step = int((lead > self.tie).nonzero()[0])
            best = int(scores[step].argmax())
            return wrong(f"token {step} is {answer[step]}, but {best} is ahead by {float(lead[step]):.2e}")
        return Outcome("undecided" if lead.max() > 0 else "right")

    def greedy(
        self, row: Row, counts: list[int], num_new: int, eos: tuple[int, ...] = ()
    ) -> tuple[list[int], list[Tensor], bool]:
        """The answer, the logits of each of its tokens, and whether one of them was a near-tie."""
        answer, all_logits, is_tie = [], [], False
        while len(answer) < num_new and not (answer and answer[-1] in eos):
            logits = self.logits(row, counts, answer)[-1]
            best = logits.topk(2)
            is_tie = is_tie or bool(best.values[0] - best.values[1] < self.tie)
            all_logits.append(logits)
            answer.append(int(best.indices[0]))
        return answer, all_logits, is_tie

    def beams(self, row: Row, counts: list[int], num_beams: int, num_new: int) -> tuple[list[list[int]], bool]:
        """The answers of a beam search without an end token, best first, and whether a near-tie decided."""
        beams, is_tie = [([], 0.0)], False
        for _ in range(num_new):
            candidates = []
            for answer, score in beams:
                values, tokens = self.logits(row, counts, answer)[-1].log_softmax(-1).topk(num_beams + 1)
                candidates += [([*answer, int(token)], score + float(v)) for v, token in zip(values, tokens)]
            candidates.sort(key=lambda candidate: -candidate[1])
            gaps = [a[1] - b[1] for a, b in zip(candidates, candidates[1:])][:num_beams]
            is_tie = is_tie or min(gaps) < self.tie
            beams = candidates[:num_beams]
        return [answer for answer, _ in beams], is_tie


def split_counts(rows: list[Row], counts: list[int]) -> list[list[int]]:
    """One number per image of a batch, row by row."""
    numbers = iter(counts)
    return [[next(numbers) for piece in row if isinstance(piece, Image)] for row in rows]
