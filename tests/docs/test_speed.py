"""docs/speed.md: its snippets run as they stand there, and its tables are what was measured."""

import json
import re

import pytest
import torch

from tests.builders.paths import REPOSITORY


PAGE = (REPOSITORY / "docs" / "speed.md").read_text()
RESULTS = REPOSITORY / "benchmarks" / "results"


def test_snippets_run(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(REPOSITORY)
    attention, compiled, quantised = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace = {}
    exec(attention, namespace)
    config = namespace["model"].config
    assert config.vision_config._attn_implementation == "eager" and config.text_config._attn_implementation == "sdpa"
    exec(compiled, namespace)
    assert namespace["model"].model.language_model._compiled_call_impl is not None
    exec(quantised, namespace)
    model = namespace["model"]
    assert model.model.resampler.q_proj.weight.dtype == model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_table_of_quantised_weights():
    accuracy = json.loads((RESULTS / "quantized.json").read_text())["accuracy"]
    for method, kinds in accuracy.items():
        cells = [" / ".join(f"{100 * value:.1f}" for value in kinds[kind].values()) for kind in kinds]
        assert f"| {method} | {' | '.join(cells)} |" in PAGE
