"""What the web demo shows, without its page: answers that stream in, what they took, pictures that are refused."""

import io
import random
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mqt_llava import MQTLlavaForConditionalGeneration
from mqt_llava.evaluation.known_images import KnownImages
from mqt_llava.planning import request_cost
from tests.builders.chats import assistant, tokenize_chat, user
from tests.builders.paths import CHECKPOINT, PICTURES
from tests.builders.scripts import load_script


demo_answers = load_script("examples/demo_answers.py")
demo_heatmaps = load_script("examples/demo_heatmaps.py")
MOSAIC = str(PICTURES / "mosaic_0.png")
QUESTION = "List the items in the second row."


@pytest.fixture(scope="module")
def answerer():
    model = MQTLlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    processor, known_images = AutoProcessor.from_pretrained(CHECKPOINT), KnownImages.load(str(CHECKPOINT), model)
    return demo_answers.Answerer(model, processor, max_new_tokens=40, known_images=known_images)


@pytest.fixture(scope="module")
def image(answerer):
    return answerer.read_image(MOSAIC)


def fresh_answer(answerer, messages, num_visual_tokens):
    inputs = tokenize_chat(answerer.processor, messages, add_generation_prompt=True)
    output = answerer.model.generate(**inputs, num_visual_tokens=num_visual_tokens, max_new_tokens=40, do_sample=False)
    length = inputs["input_ids"].shape[1]
    text = answerer.processor.decode(output[0, length:], skip_special_tokens=True).strip()
    return text, length - 16, output.shape[1] - length


@pytest.mark.parametrize("m", [1, 4, 16])
def test_an_answer_grows_into_that_of_generate(answerer, image, m):
    *growing, last = answerer.stream(image, [], QUESTION, m)
    expected, text_tokens, new_tokens = fresh_answer(answerer, [user(image, QUESTION)], m)
    assert last.text == expected and last.num_visual_tokens == m
    assert len(growing) > 2 and all(expected.startswith(answer.text.strip()) for answer in growing)
    assert all(answer.seconds is None for answer in growing) and 0 < last.first_word < last.seconds
    cost = request_cost(answerer.model.config, text_tokens=text_tokens, new_tokens=new_tokens, num_visual_tokens=m)
    assert last.flops == cost.flops.total
    number = "1 visual token" if m == 1 else f"{m} visual tokens"
    assert last.describe().startswith(f"{number} · {last.flops / 1e9:.3g} GFLOPs · first word after ")
    assert replace(last, flops=None).describe().startswith(f"{number} · first word after ")


def test_a_conversation_goes_on(answerer, image):
    *_, last = answerer.stream(image, [("What is in the top left?", "sneaker")], QUESTION, 16)
    messages = [user(image, "What is in the top left?"), assistant("sneaker"), user(QUESTION)]
    assert last.text == fresh_answer(answerer, messages, 16)[0]


def test_auto_says_which_level_it_chose(answerer, image):
    *_, coarse = answerer.stream(image, [], "Are there any trousers?", "auto")
    *_, fine = answerer.stream(image, [], QUESTION, "auto")
    assert coarse.num_visual_tokens == 1 and fine.num_visual_tokens in (4, 16)
    fixed = answerer.answer(image, QUESTION, fine.num_visual_tokens)
    assert (fine.text, fine.flops) == (fixed.text, fixed.flops)
    assert coarse.describe().startswith("1 visual token, chosen by auto · ") and "auto" not in fixed.describe()


def test_numbers_are_compared_and_then_timed(answerer, image, monkeypatch):
    """Answers come first. Times are medians over further ones, every other time in reverse."""
    asked, seconds, give = [], iter(range(1, 100)), answerer.answer

    def answer(image, question, number):
        asked.append(number)
        return replace(give(image, question, number), first_word=0, seconds=next(seconds))

    monkeypatch.setattr(answerer, "answer", answer)
    monkeypatch.setattr(demo_answers, "ROUNDS", 3)
    *growing, (timed, rounds) = answerer.compare(image, QUESTION, [1, 16, "auto"])
    assert [len(answers) for answers, _ in growing] == [1, 2, 3] and [count for _, count in growing] == [0, 0, 0]
    assert rounds == 3 and asked == [1, 16, "auto", "auto", 16, 1, 1, 16, "auto", "auto", 16, 1]
    assert [answer.seconds for answer in timed] == [7, 8, 9]  # of 6 7 12, 5 8 11 and 4 9 10
    assert [answer.num_visual_tokens for answer in timed[:2]] == [1, 16] and timed[2].is_auto
    assert timed[1].text == "sneaker, coat, dress, sandal" != timed[0].text


def test_nobody_waiting_ends_the_computation(answerer, image):
    """Closing what streams ends `generate` early, and leaves no thread behind."""
    lengths = []
    note_length = lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1])  # noqa: E731
    hook = answerer.model.model.language_model.register_forward_pre_hook(note_length, with_kwargs=True)
    answers = answerer.stream(image, [], "List the items.", 16)
    assert isinstance(next(answers), demo_answers.Answer)
    threads = threading.active_count()
    answers.close()
    stopped = len(lengths)
    assert threading.active_count() == threads - 1
    lengths.clear()
    list(answerer.stream(image, [], "List the items.", 16))
    hook.remove()
    assert stopped < len(lengths)


def test_an_error_while_generating_reaches_the_caller(answerer, image):
    with pytest.raises(ValueError, match="1..16"):
        list(answerer.stream(image, [], QUESTION, 17))


def test_empty_questions_and_endless_conversations_are_refused(answerer, image):
    with pytest.raises(ValueError, match="Ask a question first"):
        list(answerer.stream(image, [], " \n", 4))
    with pytest.raises(ValueError, match="too long: .* the model reads 1024"):
        list(answerer.stream(image, [(QUESTION, "coat " * 400)] * 3, QUESTION, 4))


def test_files_that_are_no_pictures_are_refused(answerer, tmp_path):
    whole = (PICTURES / "mosaic_0.png").read_bytes()
    for name, content, message in (
        ("empty.png", b"", "cannot be read as an image"),
        ("text.png", b"no picture", "cannot be read as an image"),
        ("cut.png", whole[: len(whole) // 2], "is damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            answerer.read_image(str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match="deleted in the meantime"):
        answerer.read_image(str(tmp_path / "gone.png"))
    # Small, but not once it is padded to a square.
    Image.new("1", (demo_answers.MAX_SIDE + 1, 1)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="9001 x 1 pixels; no side may have more than 9000"):
        answerer.read_image(str(tmp_path / "long.png"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_files_of_any_kind_are_refused(answerer, tmp_path, format):
    whole, rng = io.BytesIO(), random.Random(0)
    Image.open(MOSAIC).convert("RGB").save(whole, format)
    for _ in range(20):
        content = bytearray(whole.getvalue())
        for _ in range(20):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "damaged").write_bytes(content[: rng.randrange(len(content))])
        try:
            assert answerer.read_image(str(tmp_path / "damaged")).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith("This ")


def test_pictures_that_the_model_does_not_know_are_told(answerer, image):
    assert answerer.is_known(image) and answerer.is_known(image.resize((500, 500)))
    for unknown in (Image.new("RGB", (300, 200), "white"), image.crop((0, 0, 28, 28)), image.rotate(180)):
        assert not answerer.is_known(unknown)
    assert demo_answers.Answerer(answerer.model, answerer.processor).is_known(Image.new("RGB", (300, 200)))


@pytest.mark.parametrize(
    "tokens, parts",
    [
        (["ankle", "boot", ",", "bag", ""], [[0, 1], [3]]),
        (["A", "cat", ".", "It", "'", "s", "red", ".", ""], [[0, 1], [3, 4, 5, 6]]),
        (["bag", ","] * 20, [[2 * index] for index in range(16)]),
        ([",", ""], []),
    ],
)
def test_parts_of_an_answer(tokens, parts):
    assert demo_heatmaps.answer_parts(tokens) == parts


def test_each_part_of_an_answer_has_a_heatmap(answerer, image):
    pytest.importorskip("matplotlib")
    pytest.importorskip("captum")
    text, shown = answerer.answer(image, QUESTION, 16).text, []

    def track(parts):
        shown.append(len(parts))
        return parts

    drawn = demo_heatmaps.draw_answer(answerer.model, answerer.processor, image, QUESTION, text, 16, track)
    assert [name for name, _ in drawn] == text.split(", ") and shown == [4]
    # Where the item is, in the second row, there is colour; far from it the picture stays grey.
    for column, (_, picture) in enumerate(drawn):
        assert picture.size == (240, 240)
        colour = np.ptp(np.asarray(picture, dtype=int), axis=-1).reshape(4, 60, 4, 60).mean((1, 3))
        assert colour.argmax() == 4 + column and colour[3].max() < 0.2 * colour.max()
    with pytest.raises(ValueError, match="no answer"):
        demo_heatmaps.draw_answer(answerer.model, answerer.processor, image, QUESTION, " ", 16)
