"""What `evenfield data weights` says to expect, against the stored results of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evenfield.data_pipelines.census.weights import WeightConfig
from evenfield.data_pipelines.checks.expected_effects import (
    ADAPTIVE,
    CHEAP,
    COMBINED,
    DEMO,
    EFFECTS,
    LONG_TAIL,
    LOSS,
    SAMPLING,
    Change,
    expectation,
)


RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
FILES = {LONG_TAIL: "reweighting_longtail.json", DEMO: "reweighting_embedded.json"}
MODES = {SAMPLING: "static", ADAPTIVE: "adaptive"}
FIGURES = {
    "hard": "force MAE, worst tenth of elements (eV/A)",
    "mean": "force MAE, mean over elements (eV/A)",
    "common": "force MAE, all components (eV/A)",
}


def rounded(*values: float) -> pytest.approx:
    """Figures are stated in tenths of a percent."""
    return pytest.approx(values, abs=0.0006)


@pytest.mark.parametrize("effect", [e for e in EFFECTS if e.method in MODES])
def test_figures_with_several_seeds_are_those_of_the_benchmark(effect):
    results = json.loads((RESULTS / FILES[effect.measured_on]).read_text())
    assert effect.seeds == len(results["seeds"])
    for name, figure in FIGURES.items():
        changes = results["figures"][figure][MODES[effect.method]]["change_by_seed"]
        stated = getattr(effect, name)
        found = (stated.value, stated.low, stated.high)
        assert found == rounded(float(np.median(changes)), min(changes), max(changes)), name


@pytest.mark.parametrize(
    ("method", "file", "name"),
    [
        (CHEAP, "evenness_lab.json", "cheap_rare"),
        (
            COMBINED,
            "evenness_lab_seeds.json",
            "cheap_all_strong_sampling_sharing_more_steps",
        ),
    ],
)
def test_figures_of_the_laboratory_are_those_of_its_file(method, file, name):
    row = json.loads((RESULTS / file).read_text())["table"][name]
    (effect,) = [e for e in EFFECTS if e.method == method]
    assert effect.seeds == row["seeds"]
    for stated, key in ((effect.hard, "change_when_rare"), (effect.common, "change_when_common")):
        found = (stated.value, stated.low, stated.high)
        assert found == rounded(row[key], *row[f"{key}_interval"])


def test_weights_on_the_loss_are_those_of_the_page_against_the_uniform_run():
    # four figures of one run, which only docs/reweighting.md states
    page = (RESULTS.parents[1] / "docs" / "reweighting.md").read_text()
    assert "gave 1.358, 0.382, 0.301 and 391" in page
    figures = json.loads((RESULTS / FILES[LONG_TAIL]).read_text())["figures"]
    (effect,) = [e for e in EFFECTS if e.method == LOSS]
    for name, value in (("hard", 1.358), ("mean", 0.382), ("common", 0.301)):
        uniform = figures[FIGURES[name]]["uniform"]["by_seed"][0]
        assert getattr(effect, name) == Change(pytest.approx(value / uniform - 1, abs=0.002))


def test_settings_are_told_what_was_measured_of_them_and_what_was_not():
    nothing, *_ = expectation(WeightConfig())
    assert nothing == "these settings weight nothing, so that errors stay as they are"
    half = "\n".join(expectation(WeightConfig(beta=0.5)))
    assert "was not measured" not in half and "do not agree in sign" in half
    whole = "\n".join(expectation(WeightConfig(beta=1, loss=True)))
    assert "sampling and loss were not measured together" in whole
    loss_alone = expectation(WeightConfig(beta=1, loss=True, sampling=False))
    assert "one seed only" in loss_alone[1] and LOSS in loss_alone[1]
    assert "do not agree in sign" not in "\n".join(loss_alone)
