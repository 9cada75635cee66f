"""The domain of a level of theory against a search by ASE: pairs, boundaries, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.neighborlist import neighbor_list
from pydantic import ValidationError

from evenfield.data_pipelines.census.census import count_shards, read_census
from evenfield.data_pipelines.census.domain import (
    BOUNDARIES,
    RADIUS,
    VACUUM,
    LevelDomain,
    boundaries_of,
    boundary_of,
    domain_of,
)
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.data_pipelines.structure import Structure


def structure(atoms: Atoms, level: str = "PBE") -> Structure:
    return Structure.from_atoms(atoms, level, "one")


def boundary(atoms: Atoms) -> str:
    return BOUNDARIES[boundary_of(atoms.positions, atoms.cell.array, atoms.pbc)]


def pairs_by_ase(atoms: Atoms) -> dict[str, float]:
    """Shortest distance of every two elements, by another search."""
    first, second, distances = neighbor_list("ijd", atoms, RADIUS)
    found: dict[str, float] = {}
    for i, j, distance in zip(first, second, distances, strict=True):
        if atoms.numbers[i] <= atoms.numbers[j]:
            name = f"{atoms.symbols[i]}-{atoms.symbols[j]}"
            found[name] = min(found.get(name, np.inf), distance)
    return found


def slab(**options: object) -> Atoms:
    return fcc111("Cu", (2, 2, 3), vacuum=VACUUM, **options)


def in_a_box(atoms: Atoms, vacuum: float) -> Atoms:
    boxed = atoms.copy()
    boxed.center(vacuum=vacuum)
    boxed.pbc = True
    return boxed


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (molecule("H2O"), "molecule"),
        (Atoms("Cu"), "molecule"),
        (in_a_box(molecule("C6H6"), VACUUM), "molecule"),
        (in_a_box(molecule("C6H6"), VACUUM / 3), "crystal"),
        # through the face of the cell the atoms are close, and the gap is in the middle
        (Atoms("Cu2", [(0, 0, 0.5), (0, 0, 19.5)], cell=(3, 3, 20), pbc=True), "slab"),
        (slab(), "slab"),
        (slab(periodic=True), "slab"),
        (Atoms("C", cell=(1.3, 20, 20), pbc=True), "chain"),
        (Atoms("C", cell=(1.3, 0, 0), pbc=(True, False, False)), "chain"),
        (bulk("Cu"), "crystal"),
        (bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (2, 2, 2), "crystal"),
        (Atoms("Cu", cell=(VACUUM - 0.1,) * 3, pbc=True), "crystal"),
    ],
)
def test_boundary_is_the_number_of_directions_that_go_on(atoms: Atoms, kind: str) -> None:
    assert boundary(atoms) == kind
    # whatever the origin, and outside of the cell too
    atoms.positions += (7.3, -11.9, 0.6)
    assert boundary(atoms) == kind


def test_boundaries_of_many_are_those_of_each() -> None:
    many = [
        slab(),
        molecule("H2O"),
        bulk("Cu"),
        in_a_box(molecule("H2O"), 9.0),
        slab(periodic=True),
    ]
    expected = [BOUNDARIES.index(boundary(atoms)) for atoms in many]
    found = boundaries_of(
        [atoms.positions for atoms in many],
        np.array([atoms.cell.array for atoms in many]),
        np.array([atoms.pbc for atoms in many]),
    )
    assert found.tolist() == expected == [2, 0, 3, 0, 2]


def test_pairs_of_many_structures_are_those_of_another_search() -> None:
    rng = np.random.default_rng(0)
    frames = [molecule("CH3CH2OH"), slab(), bulk("NaCl", "rocksalt", a=5.6), Atoms("Xe")]
    for _ in range(20):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.symbols = rng.choice(["Cu", "Au", "O", "U"], len(atoms))
        atoms.rattle(0.2, rng=rng)
        frames.append(atoms)

    expected: dict[str, float] = {}
    for atoms in frames:
        for name, distance in pairs_by_ase(atoms).items():
            expected[name] = min(expected.get(name, np.inf), distance)
    domain = domain_of([structure(atoms) for atoms in frames])
    assert domain.pairs == {
        name: pytest.approx(value, abs=0.0051) for name, value in expected.items()
    }
    assert domain.atoms == (1, 12) and domain.structures == 24
    assert domain.boundaries == {"molecule": 2, "slab": 1, "crystal": 21}

    table = domain.shortest()
    assert (table == table.T).all()
    assert table[79, 29] == domain.pairs["Cu-Au"] and np.isinf(table[54]).all()

    # collected in parts, and stored in between, it is the same
    parts = [domain_of([structure(atoms) for atoms in part]) for part in (frames[:5], frames[5:])]
    stored = [LevelDomain.model_validate_json(part.model_dump_json()) for part in parts]
    assert stored[0].merged(stored[1]) == domain == stored[1].merged(stored[0])
    assert domain.merged(domain_of([])) == domain


def test_a_pair_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a pair of elements"):
        LevelDomain(structures=1, boundaries={}, atoms=(1, 1), pairs={"Cu-Qq": 1.0})


def _labelled(atoms: Atoms, level: str) -> Atoms:
    atoms = atoms.copy()
    atoms.info["level"] = level
    energy = -3.0 * len(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((len(atoms), 3)))
    return atoms


def test_a_conversion_stores_the_domain_of_its_training_structures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for number in range(60):
        atoms = bulk(("Cu", "Au", "Ni")[number % 3], cubic=True)
        atoms.rattle(0.1, rng=rng)
        atoms.set_cell(atoms.cell * rng.uniform(0.95, 1.05), scale_atoms=True)
        frames.append(_labelled(atoms, "PBE"))
    frames += [_labelled(molecule(name), "PBE-D3") for name in ("H2O", "CH4", "NH3")]
    write(tmp_path / "all.extxyz", frames)
    config = ConvertConfig(
        columns={"level_of_theory": "level"},
        split_by="structure",
        test_share=0.3,
        trust_units=True,
    )
    for out, workers in (("one", 1), ("two", 2)):
        convert(tmp_path / "all.extxyz", tmp_path / out, config, workers=workers)

    census = read_census(tmp_path / "one")
    assert census == read_census(tmp_path / "two")
    by_level: dict[str, list[Structure]] = {}
    for one in iter_structures(tmp_path / "one", "train"):
        by_level.setdefault(one.level_of_theory, []).append(one)
    assert len(by_level) == 2 and sum(map(len, by_level.values())) < 63
    for level, structures in by_level.items():
        stored = LevelDomain.model_validate(census["levels_of_theory"][level]["domain"])
        found = domain_of(structures)
        # shards round positions to float32
        assert stored.pairs == pytest.approx(found.pairs, abs=0.0101)
        assert stored.model_copy(update={"pairs": found.pairs}) == found

    # neighbours are not searched a second time: a census counted from shards has none
    shards = [tmp_path / "one" / name for name in read_info(tmp_path / "one")["shards"]]
    counted = count_shards(shards).to_dict()
    assert "domain" not in counted["levels_of_theory"]["PBE"]
