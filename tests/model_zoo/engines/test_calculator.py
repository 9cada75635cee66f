"""The calculator's neighbour lists, dtypes, features, and what it writes of itself."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from evenfield import model_zoo
from evenfield.data_pipelines.neighbours import neighbour_list
from evenfield.model_zoo.engines.verlet_list import SkinList


def pairs(edge_index: np.ndarray, shifts: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.concatenate([edge_index.T, shifts.astype(int)], 1)}


@pytest.mark.parametrize("skin", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
def test_skin_list_is_the_plain_list_at_every_step(
    skin: float, pbc: tuple[bool, bool, bool]
) -> None:
    rng, atoms, found = (
        np.random.default_rng(0),
        bulk("Cu", cubic=True) * (2, 2, 1),
        SkinList(4.0, skin),
    )
    atoms.pbc = pbc
    steps = 30
    for step in range(steps):
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        if step == 20:
            atoms.positions[3] += atoms.cell[0]  # as when somebody wraps
        arguments = (atoms.positions, atoms.cell.array, atoms.pbc)
        edge_index, shifts = found.edges(*arguments)
        assert pairs(edge_index, shifts) == pairs(*neighbour_list(*arguments, 4.0))
        assert (np.diff(edge_index[1]) >= 0).all()
    assert found.num_searches == steps if skin == 0 else 2 <= found.num_searches < steps / 2


def test_skin_list_sees_a_changed_cell_other_atoms_and_periodicity() -> None:
    atoms, found = bulk("Cu", cubic=True), SkinList(4.0, 0.5)
    changes = [
        lambda a: a,
        lambda a: a.set_cell(a.cell * 1.01),
        lambda a: a.set_pbc(False),
        lambda a: a.pop(),
    ]
    for count, change in enumerate(changes, 1):
        change(atoms)
        for _ in range(2):
            arguments = (atoms.positions, atoms.cell.array, atoms.pbc)
            assert pairs(*found.edges(*arguments)) == pairs(*neighbour_list(*arguments, 4.0))
        assert found.num_searches == count


def test_negative_skin() -> None:
    with pytest.raises(ValueError, match="skin=-1: a length"):
        SkinList(4.0, -1)


def results(calculator: object, atoms: Atoms) -> dict:
    calculator.calculate(atoms, ["energy"])
    return dict(calculator.results)


def test_history_and_skin_change_nothing_but_rounding(folder: Path) -> None:
    """One calculator taken from structure to structure, against a fresh one each time."""
    model, rng = model_zoo.load(folder), np.random.default_rng(0)
    used = model.calculator(level_of_theory="EMT", dtype="float64")
    crystal, gold = bulk("Cu", cubic=True) * (2, 1, 1), bulk("Au")
    cluster = Atoms("Cu3Au", rng.normal(0, 2.5, (4, 3)))
    stretched = crystal.copy()
    stretched.set_cell(stretched.cell * 1.02, scale_atoms=True)
    for atoms in (crystal, gold, crystal, stretched, cluster, crystal):
        for _ in range(3):
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            fresh = model.calculator(level_of_theory="EMT", dtype="float64", skin=0.0)
            expected, found = results(fresh, atoms), results(used, atoms)
            assert expected.keys() == found.keys() and ("stress" in found) == atoms.pbc.all()
            for key, value in expected.items():
                assert np.allclose(found[key], value, rtol=0, atol=1e-10), key
    assert used.neighbours.num_searches < 12


def test_both_dtypes_from_one_model(folder: Path) -> None:
    model = model_zoo.load(folder)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    single, double = (model.calculator(dtype=dtype) for dtype in (None, "float64"))
    low, high = results(single, atoms), results(double, atoms)
    assert single.parameters["dtype"] == "float32" and double.parameters["dtype"] == "float64"
    error = np.abs(low["forces"] - high["forces"]).max()
    assert 0 < error < 1e-5
    with pytest.raises(ValueError, match="dtype='half': choose float32 or float64"):
        model.calculator(dtype="half")


def test_energy_is_linear_in_the_features(folder: Path) -> None:
    """Beyond the reach of repulsion the energies follow from features, readout weights and E0 alone."""
    model = model_zoo.load(folder)
    calculator = model.calculator(level_of_theory="EMT", dtype="float64")
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    energies = results(calculator, atoms)["energies"]
    readout = calculator.potential.readout
    weight = (readout.weight[1] + readout.element_weight[1, 29]).detach().numpy()
    features = calculator.get_features()
    assert features.shape == (8, model.potential.config.readout_size)
    expected = float(calculator.potential.scale[1]) * features @ weight + float(
        calculator.potential.e0[1, 29]
    )
    assert np.allclose(energies, expected, rtol=0, atol=1e-9)
    assert np.ptp(energies) > 1e-3
    with pytest.raises(ValueError, match="there are no atoms yet"):
        model.calculator().get_features()


def test_trajectories_name_the_model_and_its_revision(folder: Path, tmp_path: Path) -> None:
    pinned = model_zoo.publish(folder, "me/copper", tmp_path / "hub")
    atoms = bulk("Cu", cubic=True)
    atoms.calc = model_zoo.load("me/copper", tmp_path / "hub").calculator(level_of_theory="EMT")
    atoms.get_forces()
    ase.io.write(tmp_path / "run.traj", atoms)
    parameters = ase.io.read(tmp_path / "run.traj").calc.parameters
    assert parameters["model"] == pinned and parameters["level_of_theory"] == "EMT"
    assert model_zoo.load(folder).reference == f"copper@{pinned.partition('@')[2]}"


def test_molecule_without_a_cell(folder: Path) -> None:
    water = molecule("H2O")
    calculator = model_zoo.load(folder).calculator()
    with pytest.raises(ValueError, match="H, O: not among the 1 elements"):
        calculator.calculate(water)
    calculator.calculate(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]))
    assert "stress" not in calculator.results and calculator.results["forces"][0, 2] != 0
