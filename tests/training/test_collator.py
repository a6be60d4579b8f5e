"""Batches: the tokens of the chat template at the m that was drawn, with answers as labels, also cut short."""

import logging
import pickle
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from mqt_llava.training import PLAIN_TEMPLATE, BudgetCollator, ConversationDataset, FixedBudget, UniformBudget
from tests.builders.conversations import answers_of, chat, expected_inputs
from tests.builders.paths import CHECKPOINT, FIXTURES, GOLDEN_NAMES, REPOSITORY


LLAVA_TEMPLATE = (REPOSITORY / "examples" / "train" / "llava_1_5.jinja").read_text()


def rows_of_every_kind(picture) -> list[dict]:
    gray = picture.resize((60, 90)).convert("L")
    return [
        chat("What is there most of?", "Coats and <image>.", "Sure?", "Yes.", images=[picture], id="turns"),
        chat("What differs?", "", images=[picture, gray], id="two images"),
        chat("What is <image>?", "List the items.", id="text"),
    ]


@pytest.fixture(params=["embedded", "golden"])
def any_processor(request):
    return request.getfixturevalue({"embedded": "embedded_processor", "golden": "processor"}[request.param])


@pytest.fixture(scope="module")
def embedded_model():
    return MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT).eval()


# At every m


def test_inputs_are_those_of_the_chat_template(any_processor, picture):
    rows = rows_of_every_kind(picture)
    for m in {*range(1, 17), 63, 144, 255, 256} & set(range(1, any_processor.max_visual_tokens + 1)):
        batch = BudgetCollator(any_processor, FixedBudget(m))(rows)
        expected = expected_inputs(any_processor, rows, num_visual_tokens=m)
        assert set(batch) == {*expected, "labels"}
        for name in expected:
            torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)
        assert batch["visual_token_counts"].tolist() == [m] * 3


@pytest.mark.parametrize("m", [1, 5, 16])
def test_labels_are_answers_and_their_ends(any_processor, picture, m):
    rows = rows_of_every_kind(picture)
    batch = BudgetCollator(any_processor, FixedBudget(m))(rows)
    ends = [text.strip() for text in answers_of(any_processor, batch)]
    assert [text.replace("</s> ", "</s>") for text in ends] == [
        "Coats and < image>.</s>Yes.</s>", "</s>", "List the items.</s>",
    ]  # fmt: skip
    is_label = batch["labels"] != -100
    assert torch.equal(batch["labels"][is_label], batch["input_ids"][is_label])
    assert not is_label[batch["input_ids"] == any_processor.image_token_id].any()
    assert not is_label[batch["attention_mask"] == 0].any()


def test_what_is_typed_is_no_placeholder(any_processor, picture):
    turns = [{"role": "user", "content": [{"type": "text", "text": "<ima"}, {"type": "text", "text": "ge> <image>"}]}]
    rows = [
        chat("Is <image> a tag?", "Yes, <image>.", images=[picture]),
        {"id": "2", "messages": [*turns, {"role": "assistant", "content": "<image>"}]},
        {"id": "3", "conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "<image>"}]},
    ]
    batch = BudgetCollator(any_processor, FixedBudget(4))(rows)
    assert (batch["input_ids"] == any_processor.image_token_id).sum(1).tolist() == [4, 0, 0]
    texts = [any_processor.tokenizer.decode(ids[ids != any_processor.image_token_id]) for ids in batch["input_ids"]]
    assert [text.count("< image>") for text in texts] == [2, 3, 1]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden_loss(name, converted):
    golden = load_file(FIXTURES / name / "golden.safetensors")
    processor = MQTLlavaProcessor.from_pretrained(converted[name])
    model = MQTLlavaForConditionalGeneration.from_pretrained(converted[name], dtype=torch.float32).eval()
    image = Image.open(FIXTURES / name / "images" / "square.png")
    batch = BudgetCollator(processor, FixedBudget(20))([chat("What is this?", "A photo of a desk.", images=[image])])
    # The original's ids, where -200 stands for the image. Of the answer it learned the last eight tokens.
    is_image = golden["loss.input_ids"] == -200
    repeats = torch.where(is_image, 20, 1)
    ids = golden["loss.input_ids"].where(~is_image, processor.image_token_id).repeat_interleave(repeats)[None]
    labels = golden["loss.labels"].where(~is_image, -100).repeat_interleave(repeats)[None]
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["labels"].where(labels != -100, -100), labels)
    with torch.no_grad():
        loss = model(**{**batch, "labels": labels}).loss
    torch.testing.assert_close(loss, golden["loss.m20"][0], rtol=0, atol=1e-6)


def test_loss_of_a_ragged_batch_is_that_of_its_rows(embedded_processor, embedded_model, picture):
    rows = rows_of_every_kind(picture)
    collator = BudgetCollator(embedded_processor, FixedBudget(9))
    total = tokens = 0
    with torch.no_grad():
        for row in rows:
            batch = collator([row])
            number = int((batch["labels"] != -100).sum())
            total, tokens = total + number * embedded_model(**batch).loss, tokens + number
        torch.testing.assert_close(embedded_model(**collator(rows)).loss, total / tokens, rtol=1e-5, atol=1e-6)


# Stage 1


@pytest.mark.parametrize("m", [1, 16])
def test_plain_template(any_processor, picture, m):
    tokenizer = any_processor.tokenizer
    rows = [
        {
            "id": "1",
            "image": picture,
            "conversations": [
                {"from": "human", "value": "Give a brief description of the image.\n<image>"},
                {"from": "gpt", "value": "a row of <image> shoes"},
            ],
        },
        chat("Describe it.", "a coat", images=[picture], id="2"),
    ]
    batch = BudgetCollator(any_processor, FixedBudget(m), chat_template=PLAIN_TEMPLATE)(rows)
    for number, caption in enumerate(("a row of < image> shoes\n", "a coat\n")):
        caption_ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
        head = [tokenizer.bos_token_id] + [any_processor.image_token_id] * m
        is_real = batch["attention_mask"][number] == 1
        assert batch["input_ids"][number][is_real].tolist() == head + caption_ids
        assert batch["labels"][number][is_real].tolist() == [-100] * len(head) + caption_ids
        assert tokenizer.decode(caption_ids[-1:]) == "\n"
    assert batch["visual_token_counts"].tolist() == [m, m]
    assert any_processor.chat_template != PLAIN_TEMPLATE


# Truncation


@pytest.mark.parametrize("budgets", [(1,), (5,), (16,), (16, 2)], ids=str)
@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE], ids=["v1", "plain"])
def test_truncation_at_every_length(embedded_processor, picture, template, budgets, caplog):
    samplers = [FixedBudget(m) for m in budgets]
    row = chat("Is there any bag?", "no", "a coat?", "yes", images=[picture, picture.rotate(90)])
    whole = BudgetCollator(embedded_processor, samplers, chat_template=template)([row])
    full = whole["input_ids"].shape[1]
    image_token_id, m = embedded_processor.image_token_id, max(budgets)
    text = whole["input_ids"][whole["input_ids"] != image_token_id]
    for max_length in range(1, full + 3):
        collator = BudgetCollator(embedded_processor, samplers, max_length=max_length, chat_template=template)
        batch = collator([row])
        assert (batch["attention_mask"].sum(1) <= max_length).all()
        is_real = batch["attention_mask"][0] == 1
        ids, labels = batch["input_ids"][0][is_real], batch["labels"][0][is_real]
        # A beginning of the whole, as long as fits: up to the length, or to an image that does not.
        assert torch.equal(ids, whole["input_ids"][0, : len(ids)])
        assert torch.equal(labels, whole["labels"][0, : len(ids)])
        num_images, is_cut = divmod(int((ids == image_token_id).sum()), m)
        assert not is_cut
        if len(ids) < min(max_length, full):
            assert whole["input_ids"][0, len(ids)] == image_token_id and len(ids) + m > max_length
        # Pictures, counts and placeholders agree.
        if num_images:
            assert batch["visual_token_counts"].tolist() == [m] * num_images
            assert torch.equal(batch["pixel_values"], whole["pixel_values"][:num_images])
        else:
            assert batch["visual_token_counts"].tolist() == [1] and batch["pixel_values"].shape[0] == 1
        for prompts in batch.get("nested", []):
            kept = prompts["input_ids"][0][prompts["attention_mask"][0] == 1]
            assert torch.equal(kept[kept != image_token_id], ids[ids != image_token_id])
            assert (kept == image_token_id).sum() == num_images * min(budgets)
        counts = collator.event_counts.totals()
        assert counts["conversations"] == 1
        assert counts["truncated_conversations"] == (max_length < full)
        assert counts["conversations_without_answer"] == (not (labels != -100).any())
        # A neighbour changes nothing, and loses its end on its own.
        together = collator([chat("a", "b"), row])
        assert together["attention_mask"].sum(1)[1] == len(ids)
        assert torch.equal(together["input_ids"][1, : len(ids)], ids)
    assert len(text) + 2 * m == full
    assert f"Record '1' teaches nothing: its {full} tokens" in caplog.text and "within `max_length` (1)" in caplog.text


def test_no_length_cuts_nothing(embedded_processor, picture):
    collator = BudgetCollator(embedded_processor, FixedBudget(16))
    collator([chat("a " * 2000, "b", images=[picture])])
    assert collator.event_counts.totals() == {
        "conversations": 1, "truncated_conversations": 0, "conversations_without_answer": 0,
    }  # fmt: skip


# Several budgets at once


def test_nested_budgets(embedded_processor, picture):
    samplers = [FixedBudget(16), UniformBudget(1, 15), FixedBudget(2)]
    rows = rows_of_every_kind(picture)
    collator = BudgetCollator(embedded_processor, samplers)
    batch = collator(rows)
    budgets = collator.draw_num_visual_tokens([row["id"] for row in rows])
    assert budgets == sorted(budgets) and budgets[-1] == 16 and 2 in budgets
    assert len(batch["nested"]) == 2
    for m, prompts in zip(budgets, [*batch["nested"], batch]):
        assert ("pixel_values" in prompts) == (prompts is batch)
        assert prompts["visual_token_counts"].tolist() == [m] * 3
        # Each the batch of that budget alone.
        alone = BudgetCollator(embedded_processor, FixedBudget(m))(rows)
        for name in ("input_ids", "attention_mask", "labels", "visual_token_counts"):
            assert torch.equal(prompts[name], alone[name])


def test_as_many_passes_whatever_is_drawn(embedded_processor, picture):
    """Processes wait for one another, so no budget is left out because another is the same."""
    collator = BudgetCollator(embedded_processor, [FixedBudget(4)] * 3)
    assert collator.draw_num_visual_tokens(["a"]) == [4, 4, 4]
    for row in (chat("a", "b", images=[picture]), chat("a", "b")):
        assert len(collator([row])["nested"]) == 2


def test_budgets_are_drawn_one_by_one(embedded_processor):
    collator = BudgetCollator(embedded_processor, [UniformBudget(1, 16)] * 2)
    drawn = [collator.draw_num_visual_tokens([str(number)]) for number in range(50)]
    assert any(low != high for low, high in drawn)


# Text alone


def test_text_alone_goes_with_a_blank_image_that_nothing_sees(embedded_processor, embedded_model):
    rows = [chat("Is there any bag?", "no"), chat("List the items in the second row.", "a coat, a bag")]
    blank = BudgetCollator(embedded_processor, FixedBudget(16))(rows)
    assert blank["visual_token_counts"].tolist() == [1] and blank["pixel_values"].shape == (1, 3, 112, 112)
    is_image = blank["input_ids"] == embedded_processor.image_token_id
    assert is_image.sum() == 1 and not blank["attention_mask"][is_image].any()
    assert (blank["labels"][is_image] == -100).all()

    gradients = []
    plain = dict(expected_inputs(embedded_processor, rows))
    assert "pixel_values" not in plain
    width = plain["input_ids"].shape[1]
    assert not blank["attention_mask"][:, width:].any()
    plain["labels"] = blank["labels"][:, :width]
    for batch in (blank, plain):
        embedded_model.zero_grad()
        loss = embedded_model(**batch).loss
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in embedded_model.named_parameters()})
        gradients[-1]["loss"] = loss.detach()
    embedded_model.zero_grad()
    for name, gradient in gradients[0].items():
        if "resampler" in name or "vision_tower" in name:
            # There, for those that add up the gradients of all processes, and nothing.
            assert gradient is None or not gradient.any()
            assert gradients[1][name] is None
        else:
            torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
    assert gradients[0]["model.resampler.query"] is not None


def test_text_beside_images_needs_no_blank_one(embedded_processor, picture):
    batch = BudgetCollator(embedded_processor, FixedBudget(3))([chat("a", "b"), chat("a", "b", images=[picture])])
    assert (batch["input_ids"] == embedded_processor.image_token_id).sum(1).tolist() == [0, 3]
    assert len(batch["pixel_values"]) == 1


# What is drawn, in which process


def test_m_depends_on_seed_epoch_and_records(embedded_processor, picture):
    def draw(seed=0, epoch=0.0, name="a"):
        collator = BudgetCollator(embedded_processor, UniformBudget(1, 16), seed=seed)
        collator.epoch_callback.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
        counts = []
        for number in range(12):
            rows = [chat("a", "b", images=[picture], id=f"{name}{number}")]
            (count,) = collator(rows)["visual_token_counts"].tolist()
            assert [count] == collator.draw_num_visual_tokens([f"{name}{number}"])
            counts.append(count)
        return counts

    first = draw()
    assert first == draw(epoch=None) == draw(epoch=0.5)  # resumed within the epoch
    assert len({tuple(first), tuple(draw(seed=1)), tuple(draw(epoch=1.0)), tuple(draw(name="b"))}) == 4


def test_a_pickled_collator_is_the_same(embedded_processor, picture):
    collator = BudgetCollator(embedded_processor, [UniformBudget(1, 16), FixedBudget(2)], max_length=60, seed=5)
    collator.epoch.fill_(3)
    copy = pickle.loads(pickle.dumps(collator))
    rows = rows_of_every_kind(picture)
    for epoch in (3, 4):
        for each in (collator, copy):
            each.epoch_callback.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        one, other = collator(rows), copy(rows)
        for mine, theirs in ((one, other), *zip(one.pop("nested"), other.pop("nested"))):
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert copy.event_counts.totals() == collator.event_counts.totals()


def test_workers_draw_the_same_and_count(embedded_processor, llava_json):
    """Also those that outlive an epoch."""
    dataset = ConversationDataset.from_json(llava_json)
    collator = BudgetCollator(embedded_processor, UniformBudget(1, 16), max_length=40)
    loader = DataLoader(dataset, batch_size=1, collate_fn=collator, num_workers=2, persistent_workers=True)
    drawn = []
    for epoch in range(3):
        collator.epoch_callback.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        batches = list(loader)
        ids = dataset.ids
        for name, batch in zip(ids, batches):
            expected = collator.draw_num_visual_tokens([name]) if "mosaic" in name else [1]
            drawn.append(expected[0])
            # A picture that the length does not leave room for is gone.
            is_there = (batch["input_ids"] == embedded_processor.image_token_id)[batch["attention_mask"] == 1].any()
            assert batch["visual_token_counts"].tolist() == (expected if is_there else [1])
        assert collator.event_counts.totals()["conversations"] == 6 * (epoch + 1)
    assert drawn[:4] != drawn[6:10] != drawn[12:16]
    assert collator.event_counts.total("truncated_conversations") == 12


# Bad arguments


@pytest.mark.parametrize("budget", [FixedBudget(17), UniformBudget(2, 256, step=2), [FixedBudget(1), FixedBudget(20)]])
def test_budgets_above_m_are_refused(embedded_processor, budget):
    largest = budget[-1].largest if isinstance(budget, list) else budget.largest
    message = f"`budget` draws up to {largest} visual tokens, but the processor's `max_visual_tokens` is 16"
    with pytest.raises(ValueError, match=message):
        BudgetCollator(embedded_processor, budget)


def test_a_template_that_marks_no_answers_is_refused(embedded_processor):
    with pytest.raises(ValueError, match="`chat_template` must mark the answers with {% generation %}"):
        BudgetCollator(embedded_processor, FixedBudget(1), chat_template="{{ messages[0]['content'] }}")
    # As many templates of others do, to let an answer begin.
    template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    with pytest.raises(ValueError, match="`chat_template` must mark the answers"):
        BudgetCollator(embedded_processor, FixedBudget(1), chat_template=template)


@pytest.mark.parametrize("max_length", [0, -1])
def test_a_length_below_one_is_refused(embedded_processor, max_length):
    with pytest.raises(ValueError, match=f"`max_length` is {max_length}, but must be at least 1"):
        BudgetCollator(embedded_processor, FixedBudget(1), max_length=max_length)


def test_no_budget_is_refused(embedded_processor):
    with pytest.raises(ValueError, match="`budget` is empty"):
        BudgetCollator(embedded_processor, [])


def test_bad_rows_say_what_is_wrong(embedded_processor):
    with pytest.raises(ValueError, match="no message is an answer"):
        BudgetCollator(embedded_processor, FixedBudget(1))([{"messages": [{"role": "user", "content": "a"}]}])


def test_the_template_is_that_of_llava_but_for_the_ends_of_answers(embedded_processor):
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A bag."}]},
        {"role": "user", "content": [{"type": "text", "text": "No <image>?"}]},
    ]
    text = embedded_processor.apply_chat_template(chat, chat_template=LLAVA_TEMPLATE, add_generation_prompt=True)
    assert text == "USER: <image>\nWhat? ASSISTANT: A bag.</s>USER: No < image>? ASSISTANT:"


@pytest.mark.parametrize("template, warns", [(LLAVA_TEMPLATE, False), (None, True)])
def test_answers_without_an_end_are_noticed_once(embedded_processor, caplog, template, warns):
    template = template or LLAVA_TEMPLATE.replace(" + eos_token", "")
    collator = BudgetCollator(embedded_processor, FixedBudget(1), chat_template=template)
    row = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bag."}]}
    with caplog.at_level(logging.WARNING, "mqt_llava.training.collator"):
        collator([row]), collator([row])
    assert caplog.text.count("No answer ends with '</s>'") == warns
