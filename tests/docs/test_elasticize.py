"""docs/elasticize.md: its snippet runs as it stands there, on a small LLaVA."""

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
