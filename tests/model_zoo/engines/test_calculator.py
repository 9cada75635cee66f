"""The calculator: its Verlet list, dtypes and features, and what it writes about itself."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.neighbours import GeometryError, neighbour_list
from evenfield.model_zoo.engines.errors import EngineError, UnseenElementError
from evenfield.model_zoo.engines.verlet_list import VerletList


def pairs(edge_index: np.ndarray, shifts: np.ndarray) -> set[tuple[int, ...]]:
    """Sender, receiver and shift of each edge, without their order."""
    rows = np.concatenate([edge_index.T, shifts.astype(int)], 1)
    return {tuple(row) for row in rows}


@pytest.mark.parametrize("skin", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, False)])
def test_verlet_list_equals_a_fresh_search_at_every_step(
    skin: float, pbc: tuple[bool, bool, bool]
) -> None:
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.pbc = pbc
    verlet_list = VerletList(4.0, skin)
    steps = 30
    for step in range(steps):
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        if step == 20:
            # as when a program wraps an atom back into the cell
            atoms.positions[3] += atoms.cell[0]

        arguments = (atoms.positions, atoms.cell.array, atoms.pbc)
        edge_index, shifts = verlet_list.edges(*arguments)
        fresh = neighbour_list(*arguments, 4.0)
        assert pairs(edge_index, shifts) == pairs(*fresh)

        # the network needs edges sorted by receiver
        receiver = edge_index[1]
        assert (np.diff(receiver) >= 0).all()

    # without a skin every move needs a search; with one, most steps need none
    if skin == 0:
        assert verlet_list.num_searches == steps
    else:
        assert 2 <= verlet_list.num_searches < steps / 2


def test_verlet_list_notices_another_cell_other_atoms_and_periodicity() -> None:
    atoms = bulk("Cu", cubic=True)
    verlet_list = VerletList(4.0, 0.5)
    changes = [
        lambda changed: changed,
        lambda changed: changed.set_cell(changed.cell * 1.01),
        lambda changed: changed.set_pbc(False),
        lambda changed: changed.pop(),
    ]
    for count, change in enumerate(changes, 1):
        change(atoms)
        # the second call must not search again
        for _ in range(2):
            arguments = (atoms.positions, atoms.cell.array, atoms.pbc)
            expected = neighbour_list(*arguments, 4.0)
            found = verlet_list.edges(*arguments)
            assert pairs(*found) == pairs(*expected)
        assert verlet_list.num_searches == count


@pytest.mark.parametrize("skin", [-1.0, float("nan")])
def test_skin_must_be_a_length(skin: float) -> None:
    with pytest.raises(EngineError, match=f"skin={skin}: give a length"):
        VerletList(4.0, skin)


def results(calculator: object, atoms: Atoms) -> dict:
    calculator.calculate(atoms, ["energy"])
    return dict(calculator.results)


def test_history_and_skin_change_only_rounding(folder: Path) -> None:
    """One calculator for a series of structures, compared with a new one for each."""
    model = model_zoo.load(folder)
    rng = np.random.default_rng(0)
    used = model.calculator(level_of_theory="EMT", dtype="float64")

    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    gold = bulk("Au")
    cluster = Atoms("Cu3Au", rng.normal(0, 2.5, (4, 3)))
    stretched = crystal.copy()
    stretched.set_cell(stretched.cell * 1.02, scale_atoms=True)

    # the crystal comes back: what was kept of it must not be taken for the present
    for atoms in (crystal, gold, crystal, stretched, cluster, crystal):
        for _ in range(3):
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            # no skin: every call searches
            fresh = model.calculator(level_of_theory="EMT", dtype="float64", skin=0.0)
            expected = results(fresh, atoms)
            found = results(used, atoms)
            assert expected.keys() == found.keys()
            assert ("stress" in found) == atoms.pbc.all()
            for key, value in expected.items():
                assert np.allclose(found[key], value, rtol=0, atol=1e-10), key

    # of 18 calls
    assert used.verlet_list.num_searches < 12


def test_both_dtypes_from_one_model(folder: Path) -> None:
    model = model_zoo.load(folder)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)

    single = model.calculator()
    double = model.calculator(dtype="float64")
    low = results(single, atoms)
    high = results(double, atoms)
    assert single.parameters["dtype"] == "float32"
    assert double.parameters["dtype"] == "float64"

    # equal forces would show that both ran in one dtype
    error = np.abs(low["forces"] - high["forces"]).max()
    assert 0 < error < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "half"}, "dtype='half': choose float32 or float64"),
        ({"level_of_theory": "HF"}, "level_of_theory='HF': the model has PBE, EMT"),
    ],
)
def test_options_that_the_model_lacks(folder: Path, options: dict, message: str) -> None:
    model = model_zoo.load(folder)
    with pytest.raises(EvenfieldError, match=message):
        model.calculator(**options)


def test_set_changes_the_numbers(folder: Path) -> None:
    """Every key acts as it does in the constructor, also after a calculation."""
    model = model_zoo.load(folder)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    calculator = model.calculator(level_of_theory="PBE")
    atoms.calc = calculator
    before = atoms.get_potential_energy()

    changed = calculator.set(level_of_theory="EMT", dtype="float64", skin=0.1)
    assert changed == {"level_of_theory": "EMT", "dtype": "float64"}
    assert calculator.parameters["level_of_theory"] == calculator.level_of_theory == "EMT"
    assert calculator.verlet_list.skin == 0.1
    fresh = model.calculator(level_of_theory="EMT", dtype="float64")
    assert atoms.get_potential_energy() == results(fresh, atoms)["energy"] != before

    # back to where it was
    calculator.set(level_of_theory="PBE", dtype="float32", skin=0.5)
    assert atoms.get_potential_energy() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "EMT"}, "level: cannot be set: set level_of_theory, dtype, device, skin"),
        ({"level_of_theory": "HF"}, "level_of_theory='HF'"),
        ({"dtype": "half"}, "dtype='half'"),
        ({"device": "abacus"}, "device='abacus': not on this machine"),
        ({"skin": -1.0}, "skin=-1.0"),
    ],
)
def test_set_refuses_what_it_cannot_do(folder: Path, change: dict, message: str) -> None:
    calculator = model_zoo.load(folder).calculator(level_of_theory="PBE")
    before = dict(calculator.parameters)
    with pytest.raises(EvenfieldError, match=message):
        calculator.set(**({"level_of_theory": "EMT"} | change))
    # half of a change would be worse than none
    assert calculator.parameters == before
    assert calculator.level_of_theory == "PBE"


def test_level_cannot_be_assigned(folder: Path) -> None:
    """It would change the name and not the numbers."""
    calculator = model_zoo.load(folder).calculator(level_of_theory="PBE")
    with pytest.raises(AttributeError):
        calculator.level_of_theory = "EMT"


@pytest.mark.parametrize("pbc", [True, False])
def test_atoms_at_one_place_are_refused(folder: Path, pbc: bool) -> None:
    """They gave NaN, and next to a stress a message that the cell is not periodic."""
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = pbc
    atoms += Atoms("Cu", atoms.positions[:1])
    atoms.calc = model_zoo.load(folder).calculator(level_of_theory="EMT")
    with pytest.raises(EngineError, match="atoms 0 and 4 are 0 A apart: remove atoms"):
        atoms.get_potential_energy()
    with pytest.raises(EngineError, match="atoms 0 and 4"):
        atoms.get_stress()


def test_exploded_structure_is_refused(folder: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.calc = model_zoo.load(folder).calculator(level_of_theory="EMT")
    atoms.get_forces()
    # the Verlet list has an older structure, which must not answer for this one
    atoms.positions[1] = np.nan
    with pytest.raises(GeometryError, match="position of atom 1"):
        atoms.get_forces()


def test_energy_is_linear_in_the_features(folder: Path) -> None:
    """Beyond the reach of repulsion, energies follow from features, readout weights and E0."""
    model = model_zoo.load(folder)
    calculator = model.calculator(level_of_theory="EMT", dtype="float64")
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    energies = results(calculator, atoms)["energies"]
    features = calculator.get_features()
    assert features.shape == (8, model.potential.config.readout_size)

    potential = calculator.potential
    readout = potential.readout
    # EMT is the second head; copper has the atomic number 29
    weight = (readout.weight[1] + readout.element_weight[1, 29]).detach().numpy()
    scale = float(potential.scale[1])
    e0 = float(potential.e0[1, 29])
    expected = scale * features @ weight + e0
    assert np.allclose(energies, expected, rtol=0, atol=1e-9)
    assert np.ptp(energies) > 1e-3


def test_features_need_a_structure(folder: Path) -> None:
    calculator = model_zoo.load(folder).calculator()
    with pytest.raises(EngineError, match=r"needs a structure: call get_features\(atoms\)"):
        calculator.get_features()


def test_trajectories_name_the_model_and_its_revision(folder: Path, tmp_path: Path) -> None:
    pinned = model_zoo.publish(folder, "me/copper", tmp_path / "hub")
    published = model_zoo.load("me/copper", tmp_path / "hub")
    atoms = bulk("Cu", cubic=True)
    atoms.calc = published.calculator(level_of_theory="EMT")
    atoms.get_forces()
    ase.io.write(tmp_path / "run.traj", atoms)

    parameters = ase.io.read(tmp_path / "run.traj").calc.parameters
    assert parameters["model"] == pinned
    assert parameters["level_of_theory"] == "EMT"

    # the same files loaded as a folder have the same revision
    _, _, revision = pinned.partition("@")
    assert model_zoo.load(folder).reference == f"copper@{revision}"


def test_molecule_without_a_cell(folder: Path) -> None:
    calculator = model_zoo.load(folder).calculator()
    calculator.calculate(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]]))
    assert "stress" not in calculator.results
    assert calculator.results["forces"][0, 2] != 0


def test_unseen_elements_are_refused(folder: Path) -> None:
    calculator = model_zoo.load(folder).calculator()
    with pytest.raises(UnseenElementError, match="H, O: not among the 1 elements"):
        calculator.calculate(molecule("H2O"))
