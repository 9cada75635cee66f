"""Noise or ignorance: added noise is found again, and a verdict that can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evenfield import model_zoo
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.check import CheckedModel, CheckError, CheckResult
from evenfield.diagnostics.checks.noise import Row, check, judged, with_noise


def passed(rows: list[Row]) -> bool | None:
    return CheckResult(judged(rows)[0]).passed


def test_noise_has_the_size_that_was_asked_for(train_structures: list[Structure]) -> None:
    rng = np.random.default_rng(0)
    moved = []
    for one in train_structures:
        noisy = with_noise(one, 0.3, rng)
        assert noisy.forces is not None
        moved.append(noisy.forces - one.forces)
    assert np.concatenate(moved).std() == pytest.approx(0.3, rel=0.1)


def test_a_sound_refit_passes_and_others_do_not() -> None:
    sound = [
        Row(16, 0.0, 0.3, 0.10, 0.2),
        Row(16, 0.4, 0.5, 0.20, 0.25),
        Row(64, 0.0, 0.3, 0.05, 0.2),
        Row(64, 0.4, 0.5, 0.10, 0.22),
    ]
    assert passed(sound) is True
    # as if noise were ignorance: the estimate does not see it
    deaf = [Row(16, 0.0, 0.3, 0.1, 0.2), Row(16, 0.4, 0.32, 0.2, 0.25)]
    assert passed(deaf) is False
    # as if ignorance were noise: it stays, whatever is learned
    stubborn = [sound[0], sound[1], sound[2], Row(64, 0.4, 0.5, 0.3, 0.22)]
    assert passed(stubborn) is False


@pytest.mark.slow
def test_noise_of_forces_is_found(data_set: Path) -> None:
    model = CheckedModel(model_zoo.load("evenfield-s"), "EMT")
    result = check(model, data_set, noise=[0.5], sizes=[16])
    found = {figure.name: figure.value for figure in result.figures}
    assert found["noise of 0.5 eV/A, 16 structures: found over added"] == pytest.approx(1, abs=0.2)
    assert found["noise of 0.5 eV/A, 16 structures: error over noise"] < 1


def test_too_few_structures_are_named(data_set: Path) -> None:
    model = CheckedModel(model_zoo.load("evenfield-s"), "EMT")
    with pytest.raises(
        CheckError, match=r"training structures with forces at EMT, fewer than 5000"
    ):
        check(model, data_set, sizes=[5000])
