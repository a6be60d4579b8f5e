"""The log of answers: what a killed evaluation leaves, and what the next one reads."""

import itertools

import pytest

from mqt_llava.evaluation import Answer, AnswerLog
from mqt_llava.evaluation.answer_log import answer_key
from mqt_llava.evaluation.finished_tasks import intervals, mean_flops, summarize, wilson_interval
from mqt_llava.planning import request_cost


def answer(key: str, **changes) -> Answer:
    given = {"task": "t", "doc_id": 3, "text": "a\nb, «ç»", "visual_tokens": [4], "text_tokens": 20, "new_tokens": 5}
    return Answer(**{"key": key, "seconds": 0.5, **given, **changes})


def test_every_process_adds_to_a_file_of_its_own_and_reads_all(tmp_path):
    first, second = AnswerLog(tmp_path, rank=0), AnswerLog(tmp_path, rank=1)
    first.add([answer("a"), answer("b")])
    second.add([answer("c")])
    assert "c" not in first
    assert {path.name: len(path.read_text().splitlines()) for path in tmp_path.iterdir()} == {
        "rank_0.jsonl": 2,
        "rank_1.jsonl": 1,
    }
    resumed = AnswerLog(tmp_path, rank=0)
    assert set(resumed.answers) == {"a", "b", "c"} and resumed["a"] == answer("a")


@pytest.mark.parametrize("kept_bytes", [1, 40, -1])
def test_a_torn_line_is_dropped_and_the_next_one_is_whole(tmp_path, kept_bytes):
    AnswerLog(tmp_path).add([answer("a"), answer("b")])
    path = tmp_path / "rank_0.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept_bytes])
    other = AnswerLog(tmp_path, rank=1)  # may read, but not mend, what is another's
    assert set(other.answers) == {"a"} and path.read_bytes() == first + second[:kept_bytes]
    log = AnswerLog(tmp_path)
    assert set(log.answers) == {"a"}
    log.add([answer("c")])
    assert set(AnswerLog(tmp_path).answers) == {"a", "c"}


def test_without_a_folder_answers_are_held_in_memory():
    log = AnswerLog()
    log.add([answer("a")])
    assert "a" in log and "b" not in log


def test_keys_tell_budgets_and_options_apart_but_not_the_order_of_options():
    key = answer_key("model", 16, {"do_sample": False, "max_new_tokens": 5})
    assert key == answer_key("model", 16, {"max_new_tokens": 5, "do_sample": False})
    others = [answer_key("model", 4, {}), answer_key("model", "16", {}), answer_key("model", 16, {"until": ["x"]})]
    assert len({key, *others}) == 4


def test_intervals_are_of_the_questions_that_a_metric_scores():
    samples = [{"doc_id": place, "row": 1.0, "points": 7.0, "text": "a"} for place in range(9)]
    found = intervals([*samples, {"doc_id": 9, "most": 0.5}])
    assert found.keys() == {"row", "most"} and found["row"][0] == 9 and found["most"][0] == 1
    # Wilson's: not empty where all answers are right; tables have 0.701 of 9, and 0.237 to 0.763 of 5 of 10.
    assert found["row"][1:] == pytest.approx([0.7008, 1], abs=1e-4)
    assert wilson_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    for share, count in itertools.product((0, 1), range(1, 50)):  # in spite of rounding
        low, high = wilson_interval(share, count)
        assert low <= share <= high


def test_a_pair_has_the_means_of_its_answers(golden_model):
    answers = [answer("a"), answer("b", visual_tokens=[4, 4], text_tokens=30, new_tokens=1, seconds=1.0)]
    figures = {"accuracy,none": 0.5, "accuracy_stderr,none": 0.1, "alias": "t", "n": 3, "list,none": None}
    pair = summarize("t", 4, {"results": {"t": figures}}, answers, golden_model.config)
    assert pair.metrics == {"t": {"accuracy": 0.5}} and pair.intervals == {}
    assert (pair.questions, pair.visual_tokens, pair.text_tokens, pair.new_tokens) == (2, 6, 25, 3)
    assert pair.seconds == 1.5
    costs = [
        request_cost(golden_model.config, text_tokens=20, new_tokens=5, num_visual_tokens=4),
        request_cost(golden_model.config, text_tokens=30, new_tokens=1, num_visual_tokens=[4, 4]),
    ]
    assert pair.flops == sum(cost.flops.total for cost in costs) / 2
    assert summarize("t", "auto", {"results": {}}, answers, golden_model.config).flops is None
    assert mean_flops([answer("a", visual_tokens=[])], golden_model.config) is None  # no image, no cost
