"""The page on planning and the example, run and computed again."""

import re
from pathlib import Path

import pytest
from transformers import LlavaConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.planning import largest_num_visual_tokens, request_cost
from mqt_llava.planning.decoders import decoder
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


main = load_script("examples/plan_budget.py").main
PAGE = (REPOSITORY / "docs" / "planning.md").read_text()
TEXT_TOKENS = 58  # of the published row, by what fits best


def tera_flops(m: int) -> float:
    if m == 576:
        return request_cost(LlavaConfig(), text_tokens=TEXT_TOKENS).flops.total / 1e12
    return request_cost(MQTLlavaConfig(), text_tokens=TEXT_TOKENS, num_visual_tokens=m).flops.total / 1e12


def test_the_published_row():
    rows = re.findall(r"^\| (\d+).*? \| ([\d.]+) \| ([\d.]+) \| ([-+][\d.]+)% \|$", PAGE, re.MULTILINE)
    assert [int(m) for m, *_ in rows] == [576, 256, 144, 64, 36, 16, 8]
    for m, published, ours, difference in rows:
        computed = tera_flops(int(m))
        assert f"{computed:.2f}" == ours
        assert f"{100 * (computed / float(published) - 1):+.1f}" == difference
    differences = {int(m): abs(float(difference)) for m, _, _, difference in rows}
    assert differences.pop(144) > 6 and max(differences.values()) <= 2


def test_the_constant_in_the_published_row():
    flops = request_cost(MQTLlavaConfig(), text_tokens=TEXT_TOKENS, num_visual_tokens=8).flops
    text = decoder(MQTLlavaConfig().text_config, is_tied=False).prefill_flops(TEXT_TOKENS)
    parts = {
        "vision tower, 23 layers": flops.vision_tower,
        "query transformer": flops.compressor,
        "58 text tokens": text,
        "8 visual tokens": flops.prefill - text,
        "sum": flops.total,
    }
    for name, part in parts.items():
        assert f"| {name} | {part / 1e12:.3f} |" in PAGE


def test_what_knowing_the_question_costs():
    rows = re.findall(r"^\| (\d+) \| (\d+)" + r" \| ([\d.]+)" * 6 + r" \|$", PAGE, re.MULTILINE)
    kernel_sizes = {36: 4, 16: 6, 4: 12, 1: 24}
    assert [(int(row[0]), int(row[1])) for row in rows] == [(length, m) for length in (24, 100) for m in kernel_sizes]
    for length, m, *shown in rows:
        config, request = QueCCLlavaConfig(kernel_size=kernel_sizes[int(m)]), {"text_tokens": 40 + int(length)}
        quecc = request_cost(config, query_tokens=int(length), **request).flops
        mqt = request_cost(MQTLlavaConfig(), num_visual_tokens=int(m), **request).flops
        same = largest_num_visual_tokens(MQTLlavaConfig(), flops=quecc.total, **request)
        figures = [quecc.total, quecc.question, quecc.compressor, mqt.total]
        figures = [f"{flops / 1e12:.3f}" for flops in figures] + [f"{quecc.total / mqt.total:.2f}", str(same)]
        assert shown == figures
        assert abs(same - (int(m) + int(length))) <= 1


def test_the_snippets_run_when_pasted(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(block.replace('"model_cards/', f'"{REPOSITORY}/model_cards/'), namespace)
    lines = capsys.readouterr().out.splitlines()
    assert len(blocks) == 2 and lines[2] == "8" and 1 <= int(lines[3]) <= 16
    assert Path("profile.json").is_file()


@pytest.mark.parametrize(
    "flags, largest",
    [
        (["--flops", 1.5e8], 8),
        (["--flops", 1e9, "--kv-bytes", 270_000], 6),
        (["--seconds", 1000], 16),
        ([], None),
    ],
)
def test_the_example_plans(flags, largest, capsys):
    main(list(map(str, ["--text-tokens", 40, "--new-tokens", 20, *flags])))
    output = capsys.readouterr().out
    assert len(re.findall(r"^\| +\d+ \|", output, re.MULTILINE)) == 5
    assert re.search(r"\|   4 \|.* 1.412e\+08 \| +258,048 \|", output)
    assert (f"Largest m within limits: {largest}\n" in output) == (largest is not None)
    assert ("Largest m" in output) == (largest is not None)


def test_the_example_says_when_nothing_fits(capsys):
    with pytest.raises(SystemExit):
        main(["--kv-bytes", "5", "--num-visual-tokens", "3"])
    assert "`kv_bytes` is 5.0, but one visual token for each image needs" in capsys.readouterr().err


def test_the_example_says_which_models_have_a_choice(converted_quecc, capsys):
    with pytest.raises(SystemExit):
        main(["--model", str(converted_quecc)])
    assert "--model is a 'quecc_llava', whose number of visual tokens cannot be chosen" in capsys.readouterr().err
