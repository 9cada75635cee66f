"""benchmarks/learning_on_the_way.py: the clusters and their new element are what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.data import covalent_radii

from evenfield import model_zoo
from evenfield.data_pipelines.enrich.label_oracles import new_calculator


BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def on_the_way(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # its neighbours are imported by their bare names
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("learning_on_the_way")


def test_clusters_grow_beyond_the_first_labels(on_the_way: ModuleType) -> None:
    task = on_the_way.TASKS["clusters"]
    found = task.structures()
    assert [len(atoms) for atoms in found] == [4, 6, 8, 8, 12, 16]
    for atoms in found:
        assert not atoms.pbc.any()
        assert atoms.symbols.formula.reduce()[0].count() == {"Na": 1, "At": 1}
        # the closest are ions of the two kinds, in contact
        distances = atoms.get_all_distances() + 99 * np.eye(len(atoms))
        numbers = atoms.numbers
        assert np.all(numbers[distances.argmin(axis=1)] != numbers)
        np.testing.assert_allclose(distances.min(axis=1), on_the_way.DISTANCE)
        assert 0.9 < on_the_way.DISTANCE / covalent_radii[[11, 85]].sum() < 1.1

    # a rattled copy of each of the first ones is labelled before the first simulation
    config = on_the_way.settings(task, "random", 0)
    assert [len(atoms) for atoms in found[: config.initial]] == [4, 6, 8, 8]


def test_ions_are_as_far_apart_as_in_the_best_cube(on_the_way: ModuleType) -> None:
    pytest.importorskip("tblite")
    task = on_the_way.TASKS["clusters"]
    cube = task.structures()[3]

    def outwards(scale: float) -> float:
        """The slope of the energy with the size of the cube, with a minus."""
        atoms = cube.copy()
        atoms.positions *= scale
        atoms.calc = new_calculator(task.oracle, {})
        return float((atoms.get_forces() * atoms.positions).sum())

    assert outwards(0.99) > 0 > outwards(1.01)


def test_astatine_is_new(on_the_way: ModuleType) -> None:
    record = model_zoo.load("evenfield-1").record
    assert on_the_way.TASKS["clusters"].level not in record.elements
    assert on_the_way.TASKS["alloys"].level not in record.elements
    assert len(record.elements) == 18
    knowing = [level for level, symbols in record.learned.items() if "At" in symbols]
    # equations of state, where all forces are zero by symmetry
    assert knowing == ["acwf_vasp_pbe"]
    assert record.level_counts["acwf_vasp_pbe"]["At"] == record.train_counts["At"]
