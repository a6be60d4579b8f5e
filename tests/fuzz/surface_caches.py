"""
Conversations that go on from a cache: every turn must answer as a fresh run on the whole conversation would.

Where the contract does not promise that a cache can be gone on from, a refusal that names `past_key_values` is right,
too; an answer must be right everywhere.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList

from .numbers import in_any_form, random_counts
from .oracle import split_counts
from .outcomes import EITHER, RIGHT, Outcome, attempt
from .rows import PADDINGS, Columns, Image, Row, images_of, lay_out, random_rows, random_text, to_tensors
from .subjects import POOL_SIZE, Subject, random_subject
from .surface_adaptive import random_budget
from .surface_generate import Decoding, Noise, random_noise, sequences_of


@dataclass
class Conversation:
    """
    What was said, how it lies in tensors, and what of it is in the cache.

    Args:
        rows: What each prompt of the batch says, answers included.
        columns: How the caller holds it, with the numbers of visual tokens it was made with.
        made: Those numbers, row by row.
        cached: The numbers at which the cache holds the images.
        cache: What the last turn left.
        is_tidy: Whether everything is as it mostly is, so that no turn may be refused.
        is_plain: Whether so far nothing was masked but on the left, and no more than the longest row needs.
        is_left: Whether all padding is on the left, so that a mask of the cache's columns can be written down.
    """

    rows: list[Row]
    columns: list[Columns]
    made: list[list[int]]
    cached: list[list[int]] = field(default_factory=list)
    cache: Any = None
    is_tidy: bool = False
    is_plain: bool = True
    is_left: bool = True
    traits: set[str] = field(default_factory=set)

    @property
    def images(self) -> list[Image]:
        return [image for row in self.rows for image in images_of(row)]

    def take(self, indices: list[int]) -> None:
        """Other rows of the batch, in another order, or some of them several times."""
        for name in ("rows", "columns", "made", "cached"):
            setattr(self, name, [getattr(self, name)[index] for index in indices])


def flat(counts: list[list[int]]) -> list[int]:
    return [count for row in counts for count in row]


def run_case(rng: Random, log: dict) -> Iterator[Outcome]:
    subject = random_subject(rng, quecc=0.15)
    log.update(model=subject.name, turns=[])
    yield from first_turn(rng, subject, log)
    talk = log.pop("conversation", None)
    for _ in range(rng.randint(1, 3)):
        if talk is None:
            return
        yield from next_turn(rng, subject, talk, log)
        talk = log.pop("conversation", None)


def numbers(rng: Random, subject: Subject, rows: list[Row]) -> list[list[int]]:
    num_images = sum(len(images_of(row)) for row in rows)
    counts = [subject.most] * num_images if subject.is_quecc else random_counts(rng, num_images, subject.most)
    return split_counts(rows, counts)


def first_turn(rng: Random, subject: Subject, log: dict) -> Iterator[Outcome]:
    rows = random_rows(rng, POOL_SIZE, most_rows=3, most_images=2)
    is_tidy = rng.random() < 0.35
    padding = "left" if is_tidy else rng.choice(("left", "left", *PADDINGS))
    extra = 0 if is_tidy else rng.choice((0, 0, 1, 5))
    made = numbers(rng, subject, rows)
    talk = Conversation(rows, lay_out(rng, rows, made, padding, extra), made, is_tidy=is_tidy)
    talk.is_left = padding == "left"
    talk.is_plain = talk.is_left and not extra
    if not talk.is_plain:
        talk.traits.add("masked columns in the first prompt")
    kwargs = to_tensors(talk.columns)
    if talk.images:
        kwargs |= subject.image_inputs(talk.images)
        if not subject.is_quecc:
            kwargs["visual_token_counts"] = torch.tensor(flat(made))
    way = rng.choice(("returned", "passed"))
    turn = {"rows": copy.deepcopy(rows), "made": made, "padding": padding, "extra": extra, "cache": way}
    log["turns"].append(turn)
    if rng.random() < 0.05 and not is_tidy:
        fill_by_hand(subject, talk, kwargs)
        turn["cache"], log["conversation"] = "filled by hand", talk
        talk.traits.add("filled by hand")
        return
    wanted = made
    if not subject.is_quecc and talk.images and rng.random() < 0.2:
        kwargs["num_visual_tokens"], wanted = random_budget(rng, subject.most), None
        talk.traits.add("adaptive")
    elif not subject.is_quecc and talk.images and rng.random() < 0.6:
        wanted = numbers(rng, subject, rows)
        kwargs["num_visual_tokens"] = in_any_form(rng, flat(wanted))
    turn["asked"] = kwargs.get("num_visual_tokens")
    if way == "passed":
        text_config = subject.model.config.get_text_config(decoder=True)
        talk.cache = kwargs["past_key_values"] = DynamicCache(config=text_config)
    copies = rng.randint(2, 3) if rng.random() < 0.1 and not is_tidy else 1
    yield from answer(rng, subject, talk, kwargs, wanted, RIGHT, log, copies)


def fill_by_hand(subject: Subject, talk: Conversation, kwargs: dict) -> None:
    """A cache that `generate` never saw."""
    talk.cache, talk.cached = DynamicCache(config=subject.model.config.get_text_config(decoder=True)), talk.made
    positions = (kwargs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        subject.model(**kwargs, position_ids=positions, past_key_values=talk.cache, use_cache=True)


def answer(
    rng: Random, subject: Subject, talk: Conversation, kwargs: dict, wanted, expected: str, log: dict, copies: int = 1
) -> Iterator[Outcome]:
    """
    Makes the call, judges it, and leaves the conversation with the answer in it for the next turn.

    Args:
        wanted: Numbers of visual tokens at which the answer must be right; None for those that are reported.
        copies: How many answers to draw to each prompt; each is a row of its own from then on.
    """
    num_new, eos = rng.randint(1, 4), ()
    kwargs |= {"max_new_tokens": num_new, "do_sample": False, "return_dict_in_generate": True}
    if rng.random() < 0.3 and not talk.is_tidy:
        eos = tuple(rng.sample(range(3, 99), 15))
        kwargs["eos_token_id"] = list(eos)
    if wanted is not None and rng.random() < 0.3 and talk.cache is not None:
        kwargs["return_dict_in_generate"] = False
    prompt, order, noise = kwargs["input_ids"], [i for i in range(len(talk.rows)) for _ in range(copies)], None
    if copies > 1:
        noise = random_noise(rng, len(order), num_new)
        processors = LogitsProcessorList([Noise(noise)])
        kwargs |= {"do_sample": True, "num_return_sequences": copies, "logits_processor": processors}

    def counts_of(result) -> list[list[int]]:
        if wanted is not None:
            return wanted
        return [[int(level)] * len(images_of(row)) for level, row in zip(result.visual_token_level, talk.rows)]

    def judge(result) -> Outcome:
        decoding = Decoding(num_new, eos, copies, noise)
        return decoding.judge(subject.oracle, result, prompt, talk.rows, counts_of(result))

    log.update(group=log["turns"][-1].get("layout", "first turn"), traits=sorted(talk.traits), expected=expected)
    names = {*kwargs, "num_visual_tokens"} if expected == RIGHT and talk.cache is None else {"past_key_values"}
    outcome = attempt(lambda: subject.model.generate(**kwargs), judge, names | {"num_visual_tokens"}, expected)
    result = outcome.result
    if outcome.kind in ("right", "undecided"):
        talk.cached = list(counts_of(result))
        if copies > 1:
            talk.take(order)
            talk.traits.add("several answers")
        if not isinstance(result, torch.Tensor):
            talk.cache = result.past_key_values
        add_answers(rng, talk, sequences_of(result)[:, prompt.shape[1] :].tolist(), eos)
        log["conversation"] = talk
    yield outcome


def add_answers(rng: Random, talk: Conversation, answers: list[list[int]], eos: tuple[int, ...]) -> None:
    """With what stands behind the end of a shorter answer masked; where none ends, some are made to."""
    for i, tokens in enumerate(answers):
        kept = next((at + 1 for at, token in enumerate(tokens) if token in eos), len(tokens))
        if rng.random() < 0.15 and not talk.is_tidy:
            kept = rng.randint(0, kept)
        if kept < len(tokens):
            talk.is_plain = talk.is_left = False
            talk.traits.add("a shorter answer")
        talk.rows[i] = talk.rows[i] + tokens[:kept]
        talk.columns[i] += Columns(tokens, [1] * kept + [0] * (len(tokens) - kept))


def rearrange(rng: Random, subject: Subject, talk: Conversation, turn: dict) -> None:
    """What callers do with a cache between two turns."""
    number = len(talk.rows)
    what = rng.choice(("nothing",) * 7 + ("copied", "cropped", "reordered", "selected", "repeated"))
    if talk.is_tidy or (what == "cropped" and subject.name == "sliding"):  # which cannot be
        what = "nothing"
    turn["cache"] = what
    if what == "nothing":
        return
    talk.traits.add(what)
    if what == "copied":
        talk.cache = copy.deepcopy(talk.cache)
    elif what == "cropped":
        talk.cache.crop(-rng.randint(1, max(1, talk.cache.get_seq_length() - 1)))
    elif what == "reordered":
        order = rng.sample(range(number), number)
        talk.cache.reorder_cache(torch.tensor(order))
        talk.take(order)
    elif what == "selected":
        chosen = sorted(rng.sample(range(number), rng.randint(1, number)))
        talk.cache.batch_select_indices(torch.tensor(chosen))
        talk.take(chosen)
    else:
        talk.cache.batch_repeat_interleave(2)
        talk.take([index for index in range(number) for _ in range(2)])
    talk.is_plain = False


def next_turn(rng: Random, subject: Subject, talk: Conversation, log: dict) -> Iterator[Outcome]:
    turn = {}
    log["turns"].append(turn)
    rearrange(rng, subject, talk, turn)
    old_rows, old_columns, num_old = talk.rows, talk.columns, [len(images_of(row)) for row in talk.rows]
    questions = ask_questions(rng, talk)
    new_images = [image for question in questions for image in images_of(question)]
    talk.rows = [row + question for row, question in zip(old_rows, questions)]

    # The numbers asked for now: those of the cache, or others.
    new_numbers = numbers(rng, subject, questions)
    if talk.is_tidy or subject.is_quecc or rng.random() < 0.7:
        old_numbers = talk.cached
    else:
        old_numbers = numbers(rng, subject, old_rows)
        if old_numbers != talk.cached:
            talk.traits.add("other numbers")
    wanted = [old + new for old, new in zip(old_numbers, new_numbers)]

    layouts = ["as it was", "as it was"]
    if not talk.is_tidy and "filled by hand" not in talk.traits:  # whose columns nobody but the caller knows
        layouts.append("made again")
    if old_numbers == talk.cached and can_go_on(talk, old_rows):
        layouts.append("new tokens")
    layout = turn["layout"] = rng.choice(layouts)
    if layout == "made again":
        made = numbers(rng, subject, talk.rows)
        padding, extra = rng.choice(("left", "left", *PADDINGS)), rng.choice((0, 0, 0, 3))
        talk.columns, talk.made = lay_out(rng, talk.rows, made, padding, extra), made
        talk.is_plain = talk.is_left = False
        turn.update(padding=padding, extra=extra)
    else:
        made_new = new_numbers if layout == "new tokens" else numbers(rng, subject, questions)
        padding = rng.choice(("left", "left", "right"))
        added = lay_out(rng, questions, made_new, padding)
        if any(not all(row.mask) for row in added):
            talk.is_plain = talk.is_left = False
            talk.traits.add("questions of several lengths")
        talk.columns = [old + new for old, new in zip(old_columns, added)]
        talk.made = [old + new for old, new in zip(talk.made, made_new)]

    kwargs, passed = to_tensors(talk.columns), rng.choice(("all", "all", "none"))
    if layout == "new tokens":
        kwargs, passed = new_tokens(talk, old_rows, added), "none"
    if new_images:
        passed = "new" if layout == "new tokens" or rng.random() < 0.4 else "all"
    if passed != "all" and wanted != talk.made and layout != "new tokens" and new_images:
        wanted = talk.made if rng.random() < 0.5 else wanted
    if passed == "new" and layout != "new tokens":  # whose numbers alone can be asked for; the others are as made
        wanted = [m[:n] + w[n:] for m, w, n in zip(talk.made, wanted, num_old)]
    turn["passed"] = passed
    shown = {"all": talk.images, "new": new_images, "none": []}[passed]
    shown_made = {"all": flat(talk.made), "new": flat([m[n:] for m, n in zip(talk.made, num_old)]), "none": []}[passed]
    if shown:
        kwargs |= subject.image_inputs(shown)
        if rng.random() < 0.2:
            with torch.no_grad():
                encoded = subject.model.get_image_features(**subject.image_inputs(shown))
            for name in subject.image_inputs(shown):
                del kwargs[name]
            kwargs["mm_encoder_outputs"] = {"image": encoded}
        if not subject.is_quecc and (len(set(shown_made)) > 1 or rng.random() < 0.7):
            kwargs["visual_token_counts"] = torch.tensor(shown_made)
    if not subject.is_quecc and talk.images:
        asked_for = {"all": wanted, "none": wanted, "new": [w[n:] for w, n in zip(wanted, num_old)]}[passed]
        numbers_now = talk.made if layout != "new tokens" else wanted
        if flat(wanted) != flat(numbers_now) or rng.random() < 0.5:
            if passed == "new" and len(set(flat(wanted))) == 1:
                asked_for = wanted
            is_of_all = passed != "new" or asked_for is wanted  # else one number would be taken for all images
            kwargs["num_visual_tokens"] = in_any_form(rng, flat(asked_for)) if is_of_all else flat(asked_for)
    turn.update(rows=copy.deepcopy(talk.rows), made=talk.made, wanted=wanted, cached=talk.cached)
    turn["asked"] = kwargs.get("num_visual_tokens")
    kwargs["past_key_values"] = talk.cache

    is_promised = talk.is_plain and subject.name != "sliding" and passed != "new"
    is_promised = is_promised and [w[:n] for w, n in zip(wanted, num_old)] == talk.cached
    if layout == "new tokens":
        is_promised = is_promised and len(talk.rows) == 1
    elif passed == "all":  # told from new images alone by the numbers
        is_promised = is_promised and {"visual_token_counts", "num_visual_tokens"} & kwargs.keys() != set()
    else:  # where one image ends and the next begins, is known of the cache, or to be guessed from equal shares
        is_known = "filled by hand" not in talk.traits or "num_visual_tokens" not in kwargs
        is_promised = is_promised and is_known and (talk.made == talk.cached or len(set(flat(talk.made))) == 1)
    yield from answer(rng, subject, talk, kwargs, wanted, RIGHT if is_promised else EITHER, log)


def ask_questions(rng: Random, talk: Conversation) -> list[Row]:
    """The next question of each row, of one length or not, perhaps with a further image."""
    length = rng.randint(1, 4)
    questions: list[Row] = [
        random_text(rng, length, length) if talk.is_tidy or rng.random() < 0.8 else random_text(rng) for _ in talk.rows
    ]
    if rng.random() < 0.25 and not talk.is_tidy:
        talk.is_plain = False
        talk.traits.add("a further image")
        for question in rng.sample(questions, rng.randint(1, len(questions))):
            question.insert(rng.randint(0, len(question)), Image(rng.randrange(POOL_SIZE), (1, *random_text(rng))))
    return questions


def num_cached(row: Row, counts: list[int]) -> int:
    """Tokens of a row that a cache holds after its last answer: all but the last."""
    return sum(counts) + len(row) - len(images_of(row)) - 1


def can_go_on(talk: Conversation, rows: list[Row]) -> bool:
    """Whether the caller can say, without the whole prompt, what is in the cache."""
    if {"cropped", "filled by hand"} & talk.traits or any(isinstance(row[-1], Image) for row in rows):
        return False
    if any(not columns.mask[-1] for columns in talk.columns):
        return False
    past = talk.cache.get_seq_length()
    return talk.is_left or all(past == num_cached(row, counts) for row, counts in zip(rows, talk.cached))


def new_tokens(talk: Conversation, old_rows: list[Row], added: list[Columns]) -> dict[str, torch.Tensor]:
    """What is not in the cache yet, the last token of the last answer first, and a mask of all columns."""
    past = talk.cache.get_seq_length()
    columns, masks = [], []
    for row, counts, new in zip(old_rows, talk.cached, added):
        real = num_cached(row, counts)
        columns.append(Columns([row[-1]], [1]) + new)
        masks.append([0] * (past - real) + [1] * real + columns[-1].mask)
    return {"input_ids": torch.tensor([row.ids for row in columns]), "attention_mask": torch.tensor(masks)}
