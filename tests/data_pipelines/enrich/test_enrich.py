"""Cheap labels for rare elements: who stands in for whom, what is made, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.data import atomic_numbers, covalent_radii
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.settings import SettingsError, load_settings
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.demo.oracles import OracleError
from evenfield.data_pipelines.enrich.enrich import EnrichConfig, EnrichError, enrich
from evenfield.data_pipelines.enrich.relatives import place_in_table, relatives
from evenfield.data_pipelines.enrich.relaxation import RelaxationConfig
from evenfield.data_pipelines.enrich.swap import is_too_dense, with_element
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.data_pipelines.structure import Structure


MODULE = __name__


class Springs(Calculator):
    """A calculator of a user: every atom on a spring to the origin; knows no gold."""

    implemented_properties = ("energy", "forces")

    def __init__(self, stiffness: float = 0.1) -> None:
        super().__init__()
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if "Au" in atoms.symbols:
            raise NotImplementedError("gold")
        self.results["forces"] = -self.stiffness * atoms.positions
        self.results["energy"] = 0.5 * self.stiffness * float((atoms.positions**2).sum())


@pytest.fixture(scope="module")
def metals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rattled crystals of copper, silver and nickel, two of palladium, two of gold."""
    structures = []
    for symbol, number in {"Cu": 8, "Ag": 8, "Ni": 8, "Pd": 2, "Au": 2}.items():
        for index in range(number):
            atoms = bulk(symbol, cubic=True)
            atoms.rattle(0.05, seed=index)
            atoms.calc = EMT()
            name = f"{symbol}-{index}"
            split = "test" if index == 7 else "train"
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            structures.append(
                Structure.from_atoms(
                    atoms, "EMT", name, name, split=split, energy=energy, forces=forces
                )
            )
    folder = tmp_path_factory.mktemp("metals") / "metals"
    write_data_set(structures, folder, {"file": "metals", "sha256": "0"}, ConvertConfig())
    return folder


def config_of(**settings: object) -> EnrichConfig:
    given = {
        "oracle": f"{MODULE}:Springs",
        "rare": 4,
        "structures_per_element": 6,
        "largest_force": 100.0,
    }
    return EnrichConfig(**(given | settings))


@pytest.mark.parametrize(
    ("symbol", "group", "period"),
    [
        *[("H", 1, 1), ("He", 18, 1), ("Mg", 2, 3), ("Al", 13, 3), ("Sc", 3, 4), ("Zn", 12, 4)],
        *[("Br", 17, 4), ("Ce", 3, 6), ("Hf", 4, 6), ("Rn", 18, 6), ("U", 3, 7), ("Og", 18, 7)],
    ],
)
def test_the_place_in_the_periodic_table(symbol: str, group: int, period: int) -> None:
    assert place_in_table(atomic_numbers[symbol]) == (group, period)


def test_relatives_are_of_the_same_group_before_neighbours() -> None:
    candidates = [atomic_numbers[symbol] for symbol in ("Li", "O", "Mg", "Na", "Cu", "S")]
    assert relatives(atomic_numbers["K"], candidates, 2) == [11, 3]
    assert relatives(atomic_numbers["Se"], candidates, 3) == [16, 8]


def test_an_element_without_relatives_takes_the_nearest_alone() -> None:
    assert relatives(atomic_numbers["Cs"], [atomic_numbers["Si"], atomic_numbers["O"]], 3) == [14]


def test_bonds_of_a_molecule_take_the_lengths_of_the_new_element() -> None:
    water = molecule("H2O")
    child = with_element(np.random.default_rng(0), water, 8, 16, (0.0, 0.0))
    assert str(child.symbols) == "SH2"
    stretch = (covalent_radii[16] + covalent_radii[1]) / (covalent_radii[8] + covalent_radii[1])
    assert child.get_distance(0, 1) == pytest.approx(water.get_distance(0, 1) * stretch, rel=1e-4)


def test_a_crystal_scales_with_its_cell() -> None:
    copper = bulk("Cu", cubic=True)
    # the third of the draws that swaps a part of the sites comes later
    child = with_element(np.random.default_rng(0), copper, 29, 47, (0.0, 0.0))
    assert set(child.symbols) == {"Ag"}
    factor = covalent_radii[47] / covalent_radii[29]
    assert child.cell.array == pytest.approx(copper.cell.array * factor)
    assert child.get_scaled_positions() == pytest.approx(copper.get_scaled_positions(), abs=1e-6)


def test_all_elements_of_a_compound_give_way_at_once() -> None:
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    child = with_element(
        np.random.default_rng(1), salt, 11, 19, (0.0, 0.0), others={17: 35}, strain=(0.0, 0.0)
    )
    assert child.symbols.get_chemical_formula() == "Br4K4"
    # bonds take the lengths of both; those between like ions count too
    factor = (covalent_radii[19] + covalent_radii[35]) / (covalent_radii[11] + covalent_radii[17])
    assert child.cell.lengths() == pytest.approx(salt.cell.lengths() * factor, rel=0.01)


def test_a_strain_deforms_periodic_directions_alone() -> None:
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    before = slab.cell.array.copy()
    rng = np.random.default_rng(0)
    child = with_element(rng, slab, 29, 29, (0.0, 0.0), strain=(0.05, 0.05))
    changed = child.cell.array - before
    assert np.abs(changed[:2, :2]).max() > 0.01
    assert not changed[2].any()
    assert not changed[:, 2].any()
    # atoms move with the cell
    moved = child.cell.scaled_positions(child.positions)
    assert moved == pytest.approx(slab.cell.scaled_positions(slab.positions), abs=1e-5)
    # no rotation: the deformation of a cubic cell is symmetric
    assert changed[0, 1] == pytest.approx(changed[1, 0])


def test_a_crystal_at_half_its_size_is_too_dense() -> None:
    for symbol in ("Cs", "W", "U", "Si"):
        atoms = bulk(symbol, "bcc", a=3.47) if symbol == "U" else bulk(symbol)
        assert not is_too_dense(atoms)
    squeezed = bulk("W")
    squeezed.set_cell(squeezed.cell * 0.5, scale_atoms=True)
    assert is_too_dense(squeezed)
    # covalent spheres of hydrogen would fit, and each atom would have a thousand neighbours
    assert is_too_dense(bulk("H", "bcc", a=0.9))


def test_rare_elements_get_labels_at_a_level_of_their_own(metals: Path, tmp_path: Path) -> None:
    done = enrich(metals, tmp_path / "cheap", config_of(elements=["Pd"]), workers=1)
    assert done.level_of_theory == "Springs"
    assert done.main_level == "EMT"
    assert done.structures == {"Pd": 6}
    assert set(done.from_relatives["Pd"]) <= {"Ni", "Cu", "Ag"}

    made = list(iter_structures(tmp_path / "cheap", "train"))
    assert len(made) == 6
    for structure in made:
        assert structure.level_of_theory == "Springs"
        assert 46 in structure.elements
        # the label is that of the stored positions
        springs = 0.05 * float((structure.positions.astype(float) ** 2).sum())
        assert structure.energy == pytest.approx(springs, rel=1e-6)
    recorded = read_info(tmp_path / "cheap")["source"]["enrichment"]
    assert recorded["settings"]["elements"] == ["Pd"]
    assert recorded["from_relatives"] == done.from_relatives


def test_rare_means_few_training_structures_at_the_main_level(metals: Path, tmp_path: Path) -> None:
    done = enrich(metals, tmp_path / "cheap", config_of(), workers=1)
    # gold is rare too, and its candidates fail, which is counted
    assert done.structures == {"Pd": 6}
    assert done.refused["calculation_failed"] >= 6


def test_test_structures_are_never_taken(metals: Path, tmp_path: Path) -> None:
    enrich(metals, tmp_path / "cheap", config_of(structures_per_element=40), workers=1)
    names = [structure.structure_id for structure in iter_structures(tmp_path / "cheap", "train")]
    assert names
    assert not [name for name in names if name.endswith("-7")]


def test_the_number_of_processes_changes_nothing(metals: Path, tmp_path: Path) -> None:
    config = config_of(oracle="EMT", level_of_theory="cheap", largest_force=15.0)
    one = enrich(metals, tmp_path / "one", config, workers=1)
    two = enrich(metals, tmp_path / "two", config, workers=2)
    assert one == two
    pairs = zip(
        iter_structures(tmp_path / "one", "train"),
        iter_structures(tmp_path / "two", "train"),
        strict=True,
    )
    for first, second in pairs:
        assert first.structure_id == second.structure_id
        assert np.array_equal(first.positions, second.positions)
        assert first.energy == second.energy


def test_compounds_change_as_a_whole_where_asked(tmp_path: Path) -> None:
    structures = []
    for first, second in (("Na", "Cl"), ("K", "Br"), ("Li", "F"), ("Rb", "I")):
        for index in range(3):
            atoms = bulk(first + second, "rocksalt", 5.0 + 0.1 * index)
            name = f"{first}{second}-{index}"
            structures.append(
                Structure.from_atoms(
                    atoms, "DFT", name, name, split="train", energy=0.0, forces=np.zeros((2, 3))
                )
            )
    write_data_set(structures, tmp_path / "salts", {"file": "x", "sha256": "0"}, ConvertConfig())

    shares = {}
    for share in (0.0, 1.0):
        config = config_of(elements=["Na"], rare=1, structures_per_element=30, swap_all=share)
        enrich(tmp_path / "salts", tmp_path / f"cheap-{share}", config, workers=1)
        made = list(iter_structures(tmp_path / f"cheap-{share}", "train"))
        kept = [structure for structure in made if _has_an_anion_of_its_host(structure)]
        shares[share] = len(kept) / len(made)
    assert shares == {0.0: 1.0, 1.0: 0.0}


def _has_an_anion_of_its_host(structure: Structure) -> bool:
    """Whether the halogen of a salt is that of the salt that it was made from."""
    host = structure.structure_id.rpartition("-in-")[2].partition("-")[0]
    halogen = next(symbol for symbol in ("Cl", "Br", "F", "I") if host.endswith(symbol))
    return atomic_numbers[halogen] in structure.elements


def test_large_structures_are_left_out_where_asked(metals: Path, tmp_path: Path) -> None:
    with pytest.raises(EnrichError, match="of at most 3 atoms"):
        enrich(metals, tmp_path / "cheap", config_of(most_atoms=3), workers=1)


def test_one_calculator_serves_all_structures_where_asked(
    metals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    before = Springs.__init__

    def counted(self: Springs, stiffness: float = 0.1) -> None:
        made.append(stiffness)
        before(self, stiffness)

    monkeypatch.setattr(Springs, "__init__", counted)
    # a stiffness of its own, so that no other test has made this calculator before
    settings = {"stiffness": 0.123}
    alone = config_of(elements=["Pd"], oracle_settings=settings)
    enrich(metals, tmp_path / "alone", alone, workers=1)
    assert len(made) > 6

    made.clear()
    shared = alone.model_copy(update={"reuse_calculator": True})
    enrich(metals, tmp_path / "shared", shared, workers=1)
    # one to see that there is one, and one for the structures
    assert len(made) == 2
    pairs = zip(
        iter_structures(tmp_path / "alone", "train"),
        iter_structures(tmp_path / "shared", "train"),
        strict=True,
    )
    for first, second in pairs:
        assert first.energy == second.energy


def test_the_licence_of_the_oracle_joins_that_of_the_data(metals: Path, tmp_path: Path) -> None:
    enrich(metals, tmp_path / "cheap", config_of(oracle_licence="BSD-3-Clause"), workers=1)
    assert "BSD-3-Clause" in read_info(tmp_path / "cheap")["licence"]


def test_what_is_too_close_is_refused(tmp_path: Path) -> None:
    structures = []
    for index in range(6):
        # two of the atoms nearly touch, in whatever way their bonds are scaled
        atoms = Atoms("Cu3", [[0, 0, 0], [2.4, 0, 0], [2.4, 0.4 + 0.01 * index, 0]])
        energy, forces = 0.0, np.zeros((3, 3))
        structures.append(
            Structure.from_atoms(
                atoms, "DFT", f"{index}", f"{index}", split="train", energy=energy, forces=forces
            )
        )
    write_data_set(structures, tmp_path / "close", {"file": "x", "sha256": "0"}, ConvertConfig())
    config = config_of(elements=["Cu"], rattle=(0.0, 0.0))
    with pytest.raises(EnrichError, match=r"no structure .* \(60 atoms_too_close\)"):
        enrich(tmp_path / "close", tmp_path / "cheap", config, workers=1)
    assert not (tmp_path / "cheap").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oracle": "EMT"}, "has the level of theory EMT already"),
        ({"source_level": "PBE"}, "no training structure at source_level=PBE"),
        ({"rare": 1}, "no element in at most rare=1"),
        ({"rare": 100}, "no element in more than rare=100"),
    ],
)
def test_what_cannot_be_enriched(
    metals: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(EnrichError, match=message):
        enrich(metals, tmp_path / "cheap", config_of(**settings), workers=1)
    assert not (tmp_path / "cheap").exists()


def test_xtb_refuses_a_set_of_crystals(metals: Path, tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    with pytest.raises(EnrichError, match="no isolated training structure"):
        enrich(metals, tmp_path / "cheap", config_of(oracle="GFN1-xTB"), workers=1)


@pytest.mark.parametrize("oracle", ["nothing:Here", "ase:Nothing", "PBE", f"{MODULE}:Path"])
def test_oracles_that_are_none(metals: Path, tmp_path: Path, oracle: str) -> None:
    with pytest.raises(OracleError):
        enrich(metals, tmp_path / "cheap", config_of(oracle=oracle), workers=1)


def test_the_folders_must_differ_in_name(metals: Path, tmp_path: Path) -> None:
    with pytest.raises(EnrichError, match="could not be mixed"):
        enrich(metals, tmp_path / "metals", config_of(), workers=1)


@pytest.mark.parametrize(
    "words",
    [
        *[["elements=[Xx]"], ["elements=[]"], ["rattle=[0.2,0.1]"], ["strain=[0.1,0.5]"]],
        *[["swap_all=2"], ["oracle_licence=free"], ["most_atoms=0"]],
    ],
)
def test_settings_that_cannot_be_meant(words: list[str]) -> None:
    with pytest.raises(SettingsError):
        load_settings(EnrichConfig, None, ["oracle=EMT", *words])


def test_the_command(metals: Path, tmp_path: Path) -> None:
    out = tmp_path / "cheap"
    words = ["oracle=EMT", "level_of_theory=cheap", "rare=4", "structures_per_element=3"]
    done = CliRunner().invoke(
        app, ["data", "enrich", str(metals), str(out), *words, "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "Pd: 3 structures, from" in done.output
    assert f"data=[{metals},{out}] default_level='EMT'" in done.output
    about = json.loads((out / "dataset_info.json").read_text())
    assert about["num_structures"]["train"] == 6


def test_excluded_elements_are_in_no_structure(metals: Path, tmp_path: Path) -> None:
    config = config_of(elements="all", excluded=["Ag", "Au"], swap_all=1.0)
    enrichment = enrich(metals, tmp_path / "more", config, workers=1)

    assert set(enrichment.structures) == {"Cu", "Ni", "Pd"}
    for structure in iter_structures(tmp_path / "more", "train"):
        assert not {47, 79} & set(structure.elements.tolist())


def test_an_element_is_not_asked_for_and_excluded() -> None:
    with pytest.raises(SettingsError, match="elements and excluded both name Pd"):
        load_settings(EnrichConfig, overrides=["oracle=EMT", "elements=[Pd]", "excluded=[Pd, Au]"])


class Silent(Calculator):
    """A potential that gives no forces at all after its second call."""

    implemented_properties = ("energy", "forces")
    calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        type(self).calls += 1
        if type(self).calls > 2:
            raise RuntimeError("nothing to say")
        self.results["energy"] = 0.0
        self.results["forces"] = np.ones((len(atoms), 3))


def test_a_potential_relaxes_structures_before_they_are_labelled(
    metals: Path, tmp_path: Path
) -> None:
    start = config_of(oracle="EMT", level_of_theory="cheap", elements=["Pd"], rattle=(0.1, 0.1))
    settings = {"calculator": "EMT", "most_steps": 120, "until_force": 0.01}
    relaxing = start.model_copy(
        update={"relaxation": RelaxationConfig(**settings), "structures_per_element": 5}
    )
    enrich(metals, tmp_path / "start", start, workers=1)
    enrich(metals, tmp_path / "relaxed", relaxing, workers=1)

    def largest_forces(folder: Path) -> list[float]:
        structures = iter_structures(folder, "train")
        return [float(np.linalg.norm(one.forces, axis=1).max()) for one in structures]

    assert min(largest_forces(tmp_path / "start")) > 0.5
    forces = largest_forces(tmp_path / "relaxed")
    # half of them come to rest within 120 steps, and their cells too; some are left on their way
    assert np.median(forces) < 0.02
    assert len({round(force, 3) for force in forces}) > 1
    for one in iter_structures(tmp_path / "relaxed", "train"):
        if np.linalg.norm(one.forces, axis=1).max() < 0.01:
            assert np.abs(one.stress).max() < 0.01


def test_what_a_potential_cannot_relax_is_counted(metals: Path, tmp_path: Path) -> None:
    relaxation = RelaxationConfig(calculator=f"{MODULE}:Silent")
    with pytest.raises(EnrichError, match=r"relaxation_failed.*the last: nothing to say"):
        enrich(metals, tmp_path / "cheap", config_of(relaxation=relaxation), workers=1)


def test_a_relaxing_calculator_that_is_none_is_named_by_its_setting(
    metals: Path, tmp_path: Path
) -> None:
    relaxation = RelaxationConfig(calculator="nothing:Here")
    with pytest.raises(OracleError, match=r"relaxation\.calculator=nothing:Here cannot"):
        enrich(metals, tmp_path / "cheap", config_of(relaxation=relaxation), workers=1)
