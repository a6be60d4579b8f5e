"""LLaVA beside MQT-LLaVA in vLLM: what is counted, and a rehearsal in tiny shapes."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from mqt_llava import MQTLlavaConfig
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script
from tests.serving.serving_cases import ENVIRONMENT


SIZES, MODELS = load_script("benchmarks/serving_sizes.py"), load_script("benchmarks/served_models.py")
HAS_ALL = all(importlib.util.find_spec(name) for name in ("vllm", "torchvision"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    MODELS.save_models(folder, "tiny", "float32")
    return folder


def test_both_checkpoints_have_one_tokenizer_and_decoder(folder):
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("mqt", "llava")]
    assert [config["image_token_index"] for config in configs] == [560, 560]
    shared = configs[0]["text_config"].keys() & configs[1]["text_config"].keys()
    assert {"hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"} < shared
    assert all(configs[0]["text_config"][name] == configs[1]["text_config"][name] for name in shared - {"dtype"})
    # The same layers are run, as both leave out those behind the one that is read.
    assert [config["vision_feature_layer"] for config in configs] == [-2, -2]
    assert [config["vision_config"]["num_hidden_layers"] for config in configs] == [4, 4]
    assert MQTLlavaConfig.from_pretrained(folder / "mqt").max_visual_tokens == 256
    assert "auto_map" not in (folder / "llava" / "processor_config.json").read_text()


def test_flops_count_an_image_as_often_as_it_is_encoded(folder):
    costs = MODELS.Costs(folder)
    cases = {(case.section, case.name): case for case in SIZES.CASES}

    def flops(section: str, name: str, cached: int = 0) -> int:
        case = cases[section, name]
        numbers = (case.numbers * 10)[: 2 * len(case.questions)]
        visual_tokens = [{None: 576, "auto": 256}.get(m, m) for m in numbers]
        answers = [SIZES.Answer(m, 0.1, 100 + more, cached) for m, more in zip(numbers, visual_tokens)]
        return SIZES.case_flops(case, 2, answers, costs, 4)

    image, answer = costs.image(256), costs.answer
    assert flops("cold", "LLaVA") == 2 * (costs.image(None) + answer(None, 100, 4))
    assert flops("cold", "16") == 2 * (costs.image(16) + answer(16, 100, 4))
    assert flops("cold", "auto") == 2 * (image + answer(16, 100, 3) + answer(64, 100, 3) + answer(256, 100, 4))
    assert flops("asked again", "64") == 2 * (costs.image(64) + 5 * answer(64, 100, 4))
    five = sum(answer(m, 100, 4) for m in (1, 16, 64, 128, 256))
    assert flops("asked again", "five m") == 2 * (image + five)
    assert flops("asked again", "five m, nothing shared") == 2 * (sum(map(costs.image, (1, 16, 64, 128, 256))) + five)
    assert flops("cold", "64", cached=64) < flops("cold", "64")


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_ALL, reason="needs vLLM, and for its LLaVA torchvision")
def test_a_rehearsal(tmp_path):
    output = tmp_path / "sizes.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "serving_sizes.py", "--cold-images", "2", "--images", "1"]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command += ["--rounds", "2", "--output", output, "--", "--enforce-eager"]
    subprocess.run(command, check=True, env=environment)
    figures = json.loads(output.read_text())
    assert [(row["section"], row["m"]) for row in figures["rows"]] == [(c.section, c.name) for c in SIZES.CASES]
    for row in figures["rows"]:
        assert len(row["seconds"]) == 2 and row["share"] == row["over_llava"] / row["predicted"]
        assert row["requests"] == (2 if row["section"] == "cold" else 5)
    assert SIZES.report(figures) in output.with_suffix(".md").read_text()
