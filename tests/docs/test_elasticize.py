"""The snippets of docs/elasticize.md, on a small LLaVA, and of the card of llava-tiny run as they stand there."""

import re

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from tests.builders.llavas import save_llava
from tests.builders.paths import REPOSITORY


def test_the_snippet_makes_a_llava_elastic(monkeypatch, tmp_path):
    save_llava(tmp_path / "llava")
    monkeypatch.chdir(tmp_path)
    snippet, _ = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "elasticize.md").read_text(), re.DOTALL)
    exec(snippet.replace("llava-hf/llava-1.5-7b-hf", "llava").replace("256", "16"), {})  # of 16 patches
    assert MQTLlavaForConditionalGeneration.from_pretrained("elastic-llava").dtype.itemsize == 2
    assert MQTLlavaProcessor.from_pretrained("elastic-llava").max_visual_tokens == 16


def test_the_snippet_of_the_card_runs(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "model_cards/llava-tiny/README.md").read_text(), re.DOTALL
    )
    namespace = {}
    exec(snippet, namespace)
    assert namespace["model"].config.max_visual_tokens == namespace["processor"].max_visual_tokens == 16
