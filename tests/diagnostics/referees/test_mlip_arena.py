"""MLIP Arena, a benchmark that nobody here wrote, judges two atoms as our own check does."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.calculators.calculator import Calculator

from broken_calculators import failed, made
from pair_calculators import Pairs, TwoMinima


diatomics = pytest.importorskip("mlip_arena.flows.diatomics", reason="pip install mlip-arena")


def of_referee(calculator: Calculator, folder: Path) -> dict[str, float]:
    diatomics.homonuclear_diatomic.fn("Cu", calculator, folder)
    (row,) = diatomics.analyze(folder).to_dict("records")
    return row


@pytest.mark.filterwarnings("ignore")
def test_one_minimum_and_two_are_told_apart_by_both(tmp_path: Path) -> None:
    sound = of_referee(Pairs(), tmp_path / "one")
    assert sound["force-flip-times"] == 1
    assert sound["tortuosity"] == pytest.approx(1, abs=0.01)
    assert failed(made("diatomics", Pairs, ["Cu"])) == []

    broken = of_referee(TwoMinima(), tmp_path / "two")
    assert broken["force-flip-times"] == 3
    assert broken["tortuosity"] > sound["tortuosity"] + 0.03
    assert failed(made("diatomics", TwoMinima, ["Cu"])) != []
