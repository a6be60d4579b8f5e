"""The page on scaling laws: what was published, fitted and computed again."""

import re

import numpy as np
import pytest
from PIL import Image

from mqt_llava.planning import ScalingLaw, fit_scaling_law, request_flops
from tests.builders.paths import REPOSITORY
from tests.builders.scripts import load_script


pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

report = load_script("examples/scaling_law/scaling_law_report.py")
PAGE = (REPOSITORY / "docs" / "scaling_law.md").read_text()


@pytest.fixture(scope="module")
def reasoning():
    return fit_scaling_law(report.published_scores("visual reasoning"))


@pytest.fixture(scope="module")
def ocr():
    return {title: fit_scaling_law(table, num_bootstrap=0) for title, table in report.variants("OCR").items()}


def test_published_exponents(reasoning):
    for name, published in (("alpha", 0.077), ("beta", 0.015)):
        assert getattr(reasoning.law, name) == pytest.approx(published, abs=0.010)
        low, high = reasoning.interval(name)
        assert low < published < high
    assert reasoning.law.D == pytest.approx(0, abs=1e-6)
    low, high = reasoning.profile_interval()
    assert low == 0 and 0.067 < high < 0.2


def test_published_optima(reasoning):
    law = reasoning.law
    assert law.optimal(1e12).tokens == 1
    assert round(law.optimal(1e12, 50).tokens) == 14
    low, high = reasoning.interval(lambda law: law.optimal(1e12, 50).tokens)
    assert 11 < low < 12.1 and 15 < high < 17

    def best(tokens, law=law):
        return min(tokens, key=lambda T: law.predict(1e12 / request_flops(1, T, 50), T))

    assert best(range(1, 577)) == 14
    assert best([1, 4, 16, 36, 64, 144, 576]) == 16
    assert best(range(1, 577), ScalingLaw(0.59, 0.077, 0.015, 0)) == 12
    for D in (0, 0.067, 0.1, 0.2):
        assert round(reasoning.at(D).optimal(1e12, 50).tokens, 1) == 13.5
    # With an error that falls by text and visual tokens together, one visual token is best.
    together = 50 + np.arange(1, 577)
    assert law.predict(1e12 / 2e9 / together, together).argmin() == 0


def test_flaws_of_the_ocr_scores(ocr):
    scores = {(point.params_billion, point.tokens): point.score for point in ocr["as published"].observations}
    assert scores[7, 576] == scores[4, 576]
    assert [len(fit.observations) for fit in ocr.values()] == [28, 27, 28, 27]
    changed = {(point.params_billion, point.tokens): point.score for point in ocr["both changes"].observations}
    assert (7, 576) not in changed and changed[4, 4] == 0.135895545
    laws = [fit.law for fit in ocr.values()]
    assert len({law.alpha for law in laws}) == 4
    for law in laws:
        assert law.alpha == pytest.approx(0.029, abs=0.010) and law.beta == pytest.approx(0.048, abs=0.010)
        assert law.beta > law.alpha and law.optimal(1e12, 50).tokens == 576


def test_where_the_law_misses_the_ocr_scores(ocr):
    residuals = ocr["as published"].residuals.reshape(4, 7)  # sizes by tokens
    assert (residuals[:, 0] < 0).all() and (residuals[1:, -1] < 0).all() and (residuals[:, 2] > 0).all()
    assert np.abs(residuals).max() == pytest.approx(0.033, abs=5e-4)
    assert abs(residuals[3, -1]) < abs(residuals[2, -1])  # the copy is nearer than what it copies


def test_the_snippet_runs_when_pasted(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    lines = capsys.readouterr().out.splitlines()
    assert "params_billion=7.8" in lines[2] and "tokens=13.5" in lines[2] and "params_billion=7," in lines[3]


def test_own_scores_are_reported(tmp_path, capsys):
    law = ScalingLaw(0.5, 0.3, 0.1, 0.2)
    rng = np.random.default_rng(0)
    lines = [
        f"{N},{T},{1 - law.predict(N, T) + rng.normal(scale=0.002)}" for N in (1, 3, 7) for T in (1, 4, 16, 64, 256)
    ]
    (tmp_path / "sweep.csv").write_text("\n".join(["params_billion,tokens,score", *lines]))
    report.main(["--scores", str(tmp_path / "sweep.csv")])
    assert "| sweep | 0.3" in capsys.readouterr().out
    assert Image.open(tmp_path / "sweep.png").size == (1350, 600)


@pytest.mark.slow
def test_the_tables_are_those_of_the_page(tmp_path, capsys):
    report.main(["--figure", str(tmp_path / "figure.png")])
    output = capsys.readouterr().out
    tables = [block for block in output.strip().split("\n\n") if block.startswith("|")]
    assert len(tables) == 5 and all(table in PAGE for table in tables)
    residuals = re.findall(r"leave a residual of [\d.]+\d", output)
    assert len(residuals) == 2 and all(residual in PAGE for residual in residuals)
    assert Image.open(tmp_path / "figure.png").size[0] > 700
