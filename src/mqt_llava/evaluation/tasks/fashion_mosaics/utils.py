"""The functions that fashion_mosaics.yaml names."""


def doc_to_visual(doc: dict) -> list:
    return [doc["image"].convert("RGB")]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """The score of an answer, among all questions and among those of its kind."""
    score = score_answer(doc["kind"], results[0], doc["answer"])
    return {"accuracy": score, doc["kind"]: score}


def score_answer(kind: str, answer: str, truth: str) -> float:
    """1 for the right answer; for listings the share of items that are right, place by place."""
    answer, truth = answer.strip(), truth.strip()
    if kind not in ("row", "column", "list"):
        return float(answer == truth)
    answers, truths = answer.split(", "), truth.split(", ")
    return sum(given == right for given, right in zip(answers, truths)) / len(truths)
