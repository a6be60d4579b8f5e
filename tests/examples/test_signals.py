"""What is compared to choose the rule of an adaptive budget, with the embedded checkpoint and without the dataset."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mqt_llava import AdaptiveBudget
from tests.builders.scripts import load_script


FOLDER = "examples/fashion_mosaics"


@pytest.fixture(scope="module")
def scripts():
    pytest.importorskip("matplotlib")
    return {name: load_script(f"{FOLDER}/{name}.py") for name in ("collect_looks", "signals", "compare_signals")}


def test_rules_are_compared_on_looks_that_are_kept(scripts, dataset, tmp_path, capsys):
    arguments = ["--data-folder", dataset, "--mosaics", 6, "--batch-size", 3, "--max-new-tokens", 9]
    arguments += ["--output", tmp_path / "looks"]

    def collect(*more):
        scripts["collect_looks"].main(list(map(str, [*arguments, *more])))
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "looks").iterdir()}

    files = collect()
    assert len(files) == 2 and collect() == files
    (tmp_path / "looks" / "000003.npz").unlink()
    assert len(collect()) == 2
    with pytest.raises(SystemExit):
        collect("--places", 3)
    assert "was made with other settings" in capsys.readouterr().err

    arguments = ["--looks", tmp_path / "looks", "--output", tmp_path / "signals.json"]
    results = scripts["compare_signals"].main(list(map(str, arguments)))
    assert results["mosaics"] == {"fitted on": 3, "judged": 3} and results["default_levels"] == [1, 4, 16]
    for mixture in results["mixtures"].values():
        assert sum(mixture["weights"].values()) == pytest.approx(1) and mixture["fixed"][-1] == [16, 1]
        plainest, *others = (rule["at_risk"]["0.01"] for rule in mixture["rules"].values())
        assert plainest["difference"] == 0 and plainest["difference_95"] == [0, 0]
        assert all(mixture["oracle"][0] - 1e-3 <= row["tokens"] <= 16 for row in [plainest, *others])
        assert (
            mixture["levels"]["16"]["0.01"]["tokens"] == 16 and mixture["levels"]["1 4 16"]["0.01"]["difference"] == 0
        )
    report = load_script(f"{FOLDER}/compare_signals_report.py")
    report.main(["--results", str(tmp_path / "signals.json"), "--figure", str(tmp_path / "figure.png")])
    assert json.loads((tmp_path / "signals.json").read_text()) == results
    assert Image.open(tmp_path / "figure.png").size == (1350, 750)


def test_signals_of_two_levels(scripts):
    """Two places at two levels: the same first token, then another."""
    best = [[[0.9, 0.1], [0.6, 0.4]], [[0.7, 0.3], [0.8, 0.1]]]
    looks = scripts["collect_looks"].Looks(
        settings={},
        texts=None,
        num_tokens=np.array([[[2, 3]]]),
        logprobs=np.log(np.array(best, np.float32))[None, None],
        ids=np.array([[[[[5, 6], [7, 8]], [[5, 6], [8, 7]]]]]),
        states=None,
    )
    signals = scripts["signals"].measure(looks, [0, 1], 2)
    assert signals.least.ravel() == pytest.approx([0.6, 0.7]) and signals.product.ravel() == pytest.approx(
        [0.54, 0.56]
    )
    assert signals.margin.ravel() == pytest.approx([0.2, 0.4]) and signals.has_ended.ravel().tolist() == [True, False]
    assert signals.agreement[..., 1] == 0.5 and signals.movement[..., 1] == pytest.approx(0.5)
    confidence = scripts["signals"].confidence(looks, [0, 1, 1], 2, unended_power=2)
    logprobs, has_ended = torch.tensor(best).log(), torch.tensor([True, False])
    expected = AdaptiveBudget(unended_power=2).confidence_in(logprobs, has_ended)
    assert confidence.ravel()[:2] == pytest.approx(expected.tolist())


def test_how_well_a_score_tells(scripts):
    compare, truth, weights = scripts["compare_signals"], np.array([False, True, False, True]), np.array([1, 1, 1, 2])
    assert compare.auroc(np.array([0.1, 0.9, 0.5, 0.5]), truth, weights) == pytest.approx((2 + 2 * 1.5) / 6)
    probabilities = np.array([0.2, 1.0, 0.1, 0.7])
    assert compare.calibration_error(probabilities, truth, weights) == pytest.approx((0.2 + 0 + 0.1 + 2 * 0.3) / 5)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 2))
    probability = 1 / (1 + np.exp(-(2 * features[:, 0] - 1)))
    odds = scripts["signals"].fit_logistic(features, rng.random(2000) < probability, np.ones(2000))(features)
    assert np.abs(1 / (1 + np.exp(-odds)) - probability).mean() < 0.05
