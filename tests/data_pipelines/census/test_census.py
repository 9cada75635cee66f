"""The census against closed forms and numpy.

Reference energies, undetermined elements, counts, force RMS.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.destination import DestinationError
from evenfield.data_pipelines.census.census import Census, count_shards, read_census
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info, to_table
from evenfield.data_pipelines.structure import SPLITS, Structure


E0 = {
    "H": -13.6,
    "C": -1029.1,
    "O": -2041.9,
    "Na": -4412.0,
    "Cl": -12510.3,
    "Fe": -34370.0,
    "Hf": -409e3,
}


def structure(formula: str, level: str = "PBE", **labels) -> Structure:
    """Atoms in one place: a census looks at elements and labels only."""
    return Structure.from_atoms(Atoms(formula), level, formula, formula, **labels)


def additive_energy(formula: str) -> float:
    return sum(E0[symbol] * count for symbol, count in Formula(formula).count().items())


def count(*structures: Structure) -> Census:
    census = Census()
    census.add_table(to_table(list(structures)), "train")
    return census


def fit(*formulas: str) -> tuple[dict[str, float], list[str]]:
    census = count(*(structure(formula, energy=additive_energy(formula)) for formula in formulas))
    result = census.references["PBE"].to_dict()
    return result["e0"], result["undetermined"]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_e0_of_energies_linear_in_composition_is_exact(seed):
    rng = np.random.default_rng(seed)
    formulas = list(E0)  # so that the compositions determine everything
    for _ in range(100):
        chosen = rng.choice(list(E0), rng.integers(1, 5), replace=False)
        formulas.append("".join(f"{symbol}{rng.integers(1, 9)}" for symbol in chosen))
    e0, undetermined = fit(*formulas)
    assert e0 == pytest.approx(E0, abs=1e-3, rel=0)
    assert undetermined == []


def test_e0_of_an_element_seen_once_in_thousands_is_as_exact():
    e0, undetermined = fit(*["H2O", "H2", "C2H6"] * 2000, "Hf1C3H12")
    assert e0["Hf"] == pytest.approx(E0["Hf"], abs=1e-2)
    assert e0["C"] == pytest.approx(E0["C"], abs=1e-3)
    assert undetermined == []


@pytest.mark.parametrize(
    ("formulas", "expected"),
    [
        (["NaCl", "Na4Cl4"], ["Na", "Cl"]),
        (["NaCl", "Na"], []),
        (["NaCl", "Na2Cl"], []),
        (["NaCl", "H2O", "H2"], ["Na", "Cl"]),
        (["NaCl", "Cl2O", "O2"], []),
        (["FeO", "FeC", "NaCl", "NaCl"], ["C", "O", "Na", "Cl", "Fe"]),
        (["Fe"] * 1000 + ["HfC"], ["C", "Hf"]),
    ],
)
def test_undetermined_elements_are_named(formulas, expected):
    e0, undetermined = fit(*formulas)
    assert undetermined == expected
    for symbol in e0.keys() - set(expected):
        assert e0[symbol] == pytest.approx(E0[symbol], abs=1e-2)
    for formula in formulas:  # what the data do say is kept
        energy = sum(e0[symbol] * n for symbol, n in Formula(formula).count().items())
        assert energy == pytest.approx(additive_energy(formula), abs=0.05)


def test_one_odd_structure_does_not_decide_a_nearly_fixed_composition():
    vacancy = structure("Na31Cl32", energy=31.5 * -7.0 + 5.0)  # a vacancy costs energy
    e0, _ = count(*[structure("NaCl", energy=-7.0)] * 10_000, vacancy).references["PBE"].solve()
    assert e0[11] == pytest.approx(-3.5, abs=1.0) and e0[17] == pytest.approx(-3.5, abs=1.0)


def level_of(e0: dict[str, float], formulas: list[str], level: str, seed: int) -> list[Structure]:
    """Energies that are additive up to 0.05 eV/atom."""
    rng = np.random.default_rng(seed)
    made = []
    for formula in formulas:
        composition = Formula(formula).count()
        exact = sum(e0[symbol] * count for symbol, count in composition.items())
        noise = rng.normal(0, 0.05) * sum(composition.values())
        made.append(structure(formula, level, energy=exact + noise))
    return made


METALS = {"Na": -1.3, "Mg": -1.6, "Al": -3.7, "Ti": -7.8, "Fe": -8.3, "Cu": -3.7, "Pt": -6.1}
ALLOYS = [f"{one}{k}{other}" for one in METALS for other in METALS if one != other for k in (1, 2)]


def test_a_level_of_few_compositions_takes_e0_from_a_level_of_many():
    """Three alloys leave the difference of their elements open; the mean energy is far from it."""
    shifted = {symbol: value + 2.0 for symbol, value in METALS.items()}
    few = [*["NaFe3"] * 20, *["CuPt3"] * 20, *["MgTi"] * 20]
    census = count(*level_of(METALS, ALLOYS, "PBE", 0), *level_of(shifted, few, "RPBE", 1))
    e0 = census.to_dict()["levels_of_theory"]["RPBE"]["e0"]
    assert e0 == pytest.approx({symbol: shifted[symbol] for symbol in e0}, abs=0.15)

    alone, _ = census.references["RPBE"].solve()
    assert abs(alone[26] - shifted["Fe"]) > 1.0


def test_a_level_with_zeros_of_its_own_is_fitted_as_if_alone():
    total = {symbol: -100.0 * (k + 1) ** 2 for k, symbol in enumerate(METALS)}
    census = count(*level_of(METALS, [*ALLOYS, "Fe"], "PBE", 0), *level_of(total, ALLOYS, "all", 1))
    e0 = census.to_dict()["levels_of_theory"]["all"]["e0"]
    assert e0 == pytest.approx({symbol: total[symbol] for symbol in e0}, abs=0.15)


def test_energies_of_zero_need_no_other_level():
    census = count(*[structure(formula, energy=0.0) for formula in ("NaCl", "H2O")])
    e0, _ = census.references["PBE"].solve({1: 0.0, 8: 0.0, 11: 0.0, 17: 0.0})
    assert e0 == {1: 0.0, 8: 0.0, 11: 0.0, 17: 0.0}


def test_levels_of_theory_and_splits_do_not_mix():
    train = [structure("H2", energy=-2.0)] * 3 + [structure("H2", energy=-6.0, level="HF")]
    census = count(*train, structure("H2", level="forces only", forces=np.ones((2, 3))))
    census.add_table(to_table([structure("H2", energy=-99.0)]), "valid")
    summary = census.to_dict()["levels_of_theory"]
    assert len(summary["PBE"].pop("energy_sketch")) == 2  # of two different energies
    assert summary["PBE"] == {
        "structures": {"train": 3, "valid": 1},
        "train_elements": {"H": 3},
        "e0": {"H": pytest.approx(-1.0)},
        "undetermined": [],
    }
    assert summary["HF"]["e0"] == {"H": pytest.approx(-3.0)}
    assert summary["forces only"]["e0"] == {}
    assert census.levels[0] == "PBE"


def test_force_rms_is_numpys_over_training_components(data_set):
    per_element = read_census(data_set)["per_element"]
    structures = list(iter_structures(data_set, "train"))
    z = np.concatenate([s.atomic_numbers for s in structures])
    forces = np.concatenate([s.forces for s in structures])
    for symbol, row in per_element.items():
        own = forces[z == chemical_symbols.index(symbol)]
        assert row["force_rms"] == pytest.approx(
            np.sqrt((own**2).mean()), rel=1e-5
        )  # float32 on disk


def test_structures_without_forces_do_not_lower_the_rms():
    census = count(structure("H2", forces=np.full((2, 3), 2.0)), structure("H2"), structure("O2"))
    per_element = census.to_dict()["per_element"]
    assert per_element["H"]["force_rms"] == 2.0
    assert per_element["O"]["force_rms"] is None


def test_counts_per_element_and_split(data_set):
    content = read_census(data_set)
    structures, atoms, levels = Counter(), Counter(), Counter()
    for split in SPLITS:
        for s in iter_structures(data_set, split):
            symbols = [chemical_symbols[z] for z in s.atomic_numbers]
            structures.update((symbol, split) for symbol in set(symbols))
            atoms.update((symbol, split) for symbol in symbols)
            levels[s.level_of_theory, split] += 1
    assert len(content["per_element"]) == 7
    for symbol, row in content["per_element"].items():
        assert row["structures"] == {
            split: structures[symbol, split] for split in row["structures"]
        }
        assert row["atoms"] == {split: atoms[symbol, split] for split in row["atoms"]}
    assert sum(sum(row["atoms"].values()) for row in content["per_element"].values()) == sum(
        atoms.values()
    )
    for level, row in content["levels_of_theory"].items():
        assert row["structures"] == {split: levels[level, split] for split in SPLITS}
    assert sum(
        sum(row["structures"].values()) for row in content["levels_of_theory"].values()
    ) == sum(read_info(data_set)["num_structures"].values())


def test_census_is_plain_json():
    census = count(structure("H2O", energy=-1.0, forces=np.ones((3, 3))))
    assert json.loads(json.dumps(census.to_dict(), allow_nan=False)) == census.to_dict()


def test_censuses_of_shards_add_up_to_the_one_that_was_written(data_set):
    paths = [data_set / name for name in read_info(data_set)["shards"]]
    halves = count_shards(paths[::2]) + count_shards(paths[1::2])
    for content in (halves.to_dict(), count_shards(paths).to_dict()):
        assert content["per_element"].keys() == read_census(data_set)["per_element"].keys()
        for symbol, row in read_census(data_set)["per_element"].items():
            assert content["per_element"][symbol]["atoms"] == row["atoms"]
            assert content["per_element"][symbol]["structures"] == row["structures"]
            assert content["per_element"][symbol]["force_rms"] == pytest.approx(
                row["force_rms"], rel=1e-12
            )
        for level, row in read_census(data_set)["levels_of_theory"].items():
            assert content["levels_of_theory"][level]["e0"] == pytest.approx(row["e0"], rel=1e-9)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("census", "census.png"),
        ("weights", "weights.png"),
        ("inspect", "inspection.png"),
        ("inspect", "inspection.html"),
    ],
)
def test_a_picture_of_the_user_is_not_drawn_over(data_set, tmp_path, command, name):
    folder = Path(shutil.copytree(data_set, tmp_path / "set"))
    (folder / name).write_bytes(b"years of work")
    result = CliRunner().invoke(app, ["data", command, str(folder)])
    assert isinstance(result.exception, DestinationError)
    assert (folder / name).read_bytes() == b"years of work"

    (folder / name).unlink()
    for _ in range(2):
        assert CliRunner().invoke(app, ["data", command, str(folder)]).exit_code == 0
