"""The model class that lmms-eval calls, on requests made by hand: `nox -s lmms_eval`."""

import pytest
import torch
from PIL import Image

from tests.builders.chats import tokenize_chat, user
from tests.builders.paths import CHECKPOINT, PICTURES


pytest.importorskip("lmms_eval", reason="needs lmms-eval: nox -s lmms_eval")
pytestmark = pytest.mark.lmms_eval

from lmms_eval.api.instance import Instance  # noqa: E402
from lmms_eval.models import get_model, get_model_manifest  # noqa: E402

from mqt_llava.evaluation.lmms_eval_model import MQTLlava, cut_at  # noqa: E402


TINY = str(CHECKPOINT)
IMAGES = [str(PICTURES / f"mosaic_{number}.png") for number in range(4)]


@pytest.fixture(scope="module")
def evaluated():
    return MQTLlava(TINY, num_visual_tokens=16, batch_size=3, device="cpu", dtype="float32")


@pytest.fixture
def model(evaluated, monkeypatch):
    """At m = 16, with an empty log, and with the sizes of the batches that it has answered."""
    evaluated.set_num_visual_tokens(16)
    evaluated.batches = []
    answer = evaluated._answer

    def count(batch):
        evaluated.batches.append(len(batch))
        return answer(batch)

    monkeypatch.setattr(evaluated, "_answer", count)
    return evaluated


def ask(model, docs: list[dict], options: dict | None = None, repeats: int = 1, **metadata) -> list:
    model.task_dict["task"] = {"test": docs}
    given = {"max_new_tokens": 40, **(options or {})}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(doc["text"], messages, {**given, **doc.get("options", {})}, number, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": number, "repeats": repeats, **metadata},
        )
        for number, doc in enumerate(docs)
    ]
    return model.generate_until([request for request in requests for _ in range(repeats)])


def messages(doc: dict) -> list[dict]:
    content = [{"type": doc.get("type", "image"), "url": image} for image in doc.get("images", [])]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["text"]}]}]


def row_questions() -> list[dict]:
    rows = ("top", "second", "third", "bottom")
    return [{"text": f"List the items in the {row} row.", "images": [IMAGES[0]]} for row in rows]


def reference(model, doc: dict, m) -> str:
    """By transformers alone, a question at a time."""
    images = [Image.open(image) for image in doc.get("images", [])]
    inputs = tokenize_chat(model.processor, [user(*images, doc["text"])], add_generation_prompt=True)
    with torch.no_grad():
        output = model.model.generate(**inputs, num_visual_tokens=m, max_new_tokens=40)
    return model.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_the_entry_point_leads_here():
    assert get_model("mqt_llava") is MQTLlava
    assert get_model_manifest("mqt_llava").chat_class_path.endswith("lmms_eval_model.MQTLlava")


@pytest.mark.parametrize("m", [1, 4, 16, "auto"])
def test_answers_are_those_of_generate_in_the_requests_order(model, m):
    model.set_num_visual_tokens(m)
    docs = [*row_questions(), {"text": "Is there any footwear?", "images": [IMAGES[1]]}]
    results = ask(model, docs)
    assert [result.text for result in results] == [reference(model, doc, m) for doc in docs]
    assert model.batches == [3, 2]
    levels = [answer.visual_tokens[0] for answer in model.log.answers.values()]
    assert set(levels) <= ({1, 4, 16} if m == "auto" else {m})


def test_tokens_are_counted_without_padding(model):
    docs = [{"text": "Is there any footwear?", "images": [IMAGES[0]]}, row_questions()[0]]
    for doc, result in zip(docs, ask(model, docs)):
        model.set_num_visual_tokens(16)
        (alone,) = ask(model, [doc])
        assert result.token_counts == alone.token_counts
        tokens = model.processor.tokenizer(result.text, add_special_tokens=False).input_ids
        assert result.token_counts.output_tokens == len(tokens) + 1  # with the one that ends it
        prompt = model.processor.tokenizer(f"USER: \n{doc['text']} ASSISTANT:").input_ids
        assert len(prompt) < result.token_counts.input_tokens < len(prompt) + 16 + 40  # and the system's text
        (answer,) = model.log.answers.values()
        assert result.token_counts.input_tokens == answer.text_tokens + 16


def test_a_message_may_show_several_images_or_none(model):
    docs = [{"text": "List the items.", "images": IMAGES[:2]}, {"text": "Is there any footwear?"}]
    for doc in docs:
        (result,) = ask(model, [doc])
        assert result.text == reference(model, doc, 16)
        model.set_num_visual_tokens(16)
    ask(model, docs)  # and both in one batch
    assert sorted(answer.visual_tokens for answer in model.log.answers.values()) == [[], [16, 16]]


def test_answers_in_the_log_are_not_computed_again(model, tmp_path):
    model.set_num_visual_tokens(16, str(tmp_path))
    first = ask(model, row_questions())
    model.set_num_visual_tokens(16, str(tmp_path))
    again = ask(model, [*row_questions(), {"text": "List the items.", "images": [IMAGES[0]]}])
    assert model.batches == [3, 1, 1] and [result.text for result in again[:4]] == [result.text for result in first]
    model.set_num_visual_tokens(4, str(tmp_path))  # another budget is another answer
    ask(model, row_questions())
    assert model.batches == [3, 1, 1, 3, 1]


def test_repeats_are_answered_one_by_one_and_padding_not_at_all(model):
    assert len(ask(model, row_questions()[:1], repeats=3)) == 3 and model.batches == [3]
    assert [result.text for result in ask(model, row_questions(), __padding_only__=True)] == [""] * 4
    assert model.batches == [3]


def test_questions_with_other_options_are_not_in_one_batch(model):
    docs = row_questions()[:2]
    docs[1]["options"] = {"max_new_tokens": 2}
    long, short = ask(model, docs)
    assert model.batches == [1, 1]
    assert (short.token_counts.output_tokens, long.token_counts.output_tokens > 2) == (2, True)


def test_answers_end_where_the_task_says(model):
    whole, cut = ask(model, row_questions()[:1])[0], ask(model, row_questions()[:1], {"until": [","]})[0]
    assert cut.text == whole.text.split(",")[0] != whole.text
    assert cut_at("a\n\nb ASSISTANT: c", ["ASSISTANT:", "xyz"]) == "a\n\nb "
    assert cut_at("abc", []) == "abc"


def test_other_media_are_refused_by_name(model):
    with pytest.raises(ValueError, match="Task 'task' shows video, but mqt_llava only reads images and text"):
        ask(model, [{"text": "?", "type": "video", "images": ["film.mp4"]}])


def test_other_kinds_of_requests_are_refused(model):
    with pytest.raises(NotImplementedError, match="not loglikelihood"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])


def test_arguments_as_lmms_eval_passes_them():
    arguments = f"pretrained={TINY},num_visual_tokens=auto"
    model = MQTLlava.create_from_arg_string(arguments, {"batch_size": "7", "max_batch_size": None, "device": None})
    assert (model.batch_size, model.num_visual_tokens, model.rank, model.world_size) == (7, "auto", 0, 1)
    with pytest.raises(ValueError, match="`num_visual_tokens` is 17, but must be an integer in 1..16"):
        MQTLlava(TINY, num_visual_tokens=17)
    with pytest.raises(ValueError, match="`batch_size` is 'auto'"):
        MQTLlava(TINY, batch_size="auto")
    assert MQTLlava(TINY).num_visual_tokens is None
