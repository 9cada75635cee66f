"""Structures outside of what a level was trained on: a warning of each kind, and what fits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111

from evenfield import model_zoo
from evenfield.data_pipelines.census.domain import LevelDomain, domain_of
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo import LoadedModel, ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.engines.domain_watch import DomainWarning
from evenfield.model_zoo.package.domain_record import DOMAIN, domain_file, domains_of

from small_models import rewrite


LEVELS = ["crystals", "molecules", "slabs", "unknown"]
CRYSTAL = bulk("Cu", cubic=True)
DIMER = Atoms("Cu2", [(0, 0, 0), (0, 0, 2.2)])
WIDE = Atoms("Cu2", [(0, 0, 0), (0, 0, 2.6)])
MIXED = Atoms("CuAu", [(0, 0, 0), (0, 0, 2.4)])
SLAB = fcc111("Cu", (1, 1, 3), vacuum=8.0)


def domain(*frames: Atoms) -> LevelDomain:
    return domain_of([Structure.from_atoms(atoms, "any", "any") for atoms in frames])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cu and Au at four levels: crystals, where the two never met, molecules, slabs, no domain."""
    potential = Potential(
        PotentialConfig(channels=4, cutoff=5.0, readout_size=8, levels_of_theory=LEVELS)
    )
    record = ModelRecord(
        name="metals",
        licence="Apache-2.0",
        elements={level: ["Cu", "Au"] for level in LEVELS},
        level_details={"crystals": "PBE, VASP"},
    )
    domains = {
        "crystals": domain(CRYSTAL, bulk("Au", cubic=True)),
        "molecules": domain(DIMER, MIXED, Atoms("Au2", [(0, 0, 0), (0, 0, 2.5)])),
        "slabs": domain(SLAB),
    }
    place = tmp_path_factory.mktemp("models") / "metals"
    return model_zoo.save_model(place, potential, record, attachments=domain_file(domains))


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return model_zoo.load(folder)


def told(model: LoadedModel, level: str, *frames: Atoms, **options: object) -> list[str]:
    """The warnings of one calculator for some structures, one after the other."""
    calculator = model.calculator(level_of_theory=level, **options)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for atoms in frames:
            calculator.calculate(atoms)
    assert all(entry.category is DomainWarning for entry in found)
    return [str(entry.message) for entry in found]


def squeezed(atoms: Atoms, factor: float) -> Atoms:
    changed = atoms.copy()
    changed.set_cell(atoms.cell * factor, scale_atoms=True)
    return changed


def test_nothing_is_said_of_what_the_level_knows(model: LoadedModel) -> None:
    rattled = CRYSTAL * (2, 2, 2)
    rattled.rattle(0.01, seed=0)
    assert told(model, "crystals", CRYSTAL, rattled, bulk("Au")) == []
    assert told(model, "molecules", DIMER, MIXED) == []
    assert told(model, "slabs", SLAB, SLAB * (2, 2, 1)) == []
    # of a level without a domain nothing is known
    assert told(model, "unknown", DIMER, MIXED, CRYSTAL) == []


def test_a_kind_of_boundary_is_told_once_with_the_level_that_fits(model: LoadedModel) -> None:
    (line,) = told(model, "crystals", WIDE, Atoms("Cu"), WIDE)
    assert line == (
        "the structure is a molecule, and crystals was trained on crystals; "
        "level_of_theory='molecules' fits"
    )
    # the dimer of a slab calculator sits in its own box
    boxed = WIDE.copy()
    boxed.center(vacuum=9)
    boxed.pbc = True
    assert told(model, "crystals", boxed) == [line]


def test_a_few_structures_of_a_kind_do_not_make_it_known(folder: Path) -> None:
    """Among the crystals of a database are some whose atoms are too far apart to touch."""
    model = model_zoo.load(folder)
    many = LevelDomain(
        structures=500,
        boundaries={"crystal": 496, "molecule": 4},
        atoms=(1, 4),
        pairs={"Cu-Cu": 2.5},
    )
    domains = {**model.domains, "crystals": many}
    mixed = replace(model, attachments=domain_file(domains))
    (line,) = told(mixed, "crystals", CRYSTAL, WIDE)
    assert "crystals was trained on crystals (a molecule is 4 of 500 structures)" in line
    assert many.knows("crystal") and not many.knows("molecule") and not many.knows("slab")
    # in a large set a hundred are enough
    large = {"crystal": 99_900, "molecule": 100}
    assert many.model_copy(update={"structures": 100_000, "boundaries": large}).knows("molecule")


def test_a_pair_that_never_met_is_told_once(model: LoadedModel) -> None:
    alloy = CRYSTAL.copy()
    alloy.symbols[0] = "Au"
    (line,) = told(model, "crystals", CRYSTAL, alloy, alloy * (2, 1, 1))
    assert line == (
        "Cu-Au is 2.55 A apart, and crystals was never trained on this pair within 4 A; "
        "no other level of theory of the model fits"
    )
    # further apart than the radius of the domain nothing is known, and nothing is said
    far = Atoms("CuAu", cell=(4.5, 4.5, 9.0), pbc=True, scaled_positions=[(0, 0, 0), (0, 0, 0.5)])
    assert told(model, "crystals", far) == []


def test_a_distance_below_all_others_is_told_once_while_atoms_move(model: LoadedModel) -> None:
    frames = [squeezed(CRYSTAL, factor) for factor in (1.0, 0.99, 0.9, 0.8)]
    (line,) = told(model, "crystals", *frames)
    nearest = CRYSTAL.cell[0, 0] / np.sqrt(2)
    assert f"Cu-Cu is {0.9 * nearest:.2f} A apart, {2.55 - 0.9 * nearest:.2f} A closer" in line
    assert "training structure of crystals" in line

    # between two searches for neighbours too
    calculator = model.calculator(level_of_theory="molecules", skin=2.0)
    atoms = Atoms("Cu2", [(0, 0, 0), (0, 0, 2.5)], calculator=calculator)
    atoms.get_potential_energy()
    atoms.positions[1, 2] = 2.2 - 0.04
    atoms.get_potential_energy()
    atoms.positions[1, 2] = 2.2 - 0.3
    with pytest.warns(DomainWarning, match=r"Cu-Cu is 1\.90 A apart, 0\.30 A closer"):
        atoms.get_potential_energy()
    assert calculator.verlet_list.num_searches == 1
    atoms.positions[1, 2] = 1.5
    atoms.get_potential_energy()


def test_kinds_are_told_apart_and_each_has_its_own_warning(model: LoadedModel) -> None:
    crushed = Atoms("CuAu", [(0, 0, 0), (0, 0, 1.5)])
    lines = told(model, "slabs", crushed, MIXED, DIMER, squeezed(SLAB, 0.9))
    assert [line.split(" ")[0] for line in lines] == ["the", "Cu-Au", "Cu-Cu"]
    assert "level_of_theory" not in lines[0] and "level_of_theory" not in lines[1]


def test_another_level_is_watched_from_the_beginning(model: LoadedModel) -> None:
    calculator = model.calculator(level_of_theory="crystals")
    with pytest.warns(DomainWarning, match="crystals was trained on crystals;"):
        calculator.calculate(WIDE)
    calculator.set(level_of_theory="molecules")
    calculator.calculate(WIDE)
    calculator.set(level_of_theory="slabs")
    with pytest.warns(DomainWarning, match="slabs was trained on slabs;"):
        calculator.calculate(WIDE)


def test_warnings_can_be_left_out(model: LoadedModel) -> None:
    assert told(model, "crystals", DIMER, MIXED, warn_outside=False) == []


def test_levels_are_listed_with_what_they_are_for(model: LoadedModel) -> None:
    listed = model.described_levels
    assert listed[0] == "crystals for Cu Au, crystals (PBE, VASP)"
    assert listed[1:] == [
        "molecules for Cu Au, molecules",
        "slabs for Cu Au, slabs",
        "unknown for Cu Au",
    ]
    with pytest.raises(model_zoo.package.levels.LevelError) as refusal:
        model.calculator()
    assert all(f"\n  {line}" in str(refusal.value) for line in listed)


def test_card_says_what_each_level_was_trained_on(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "2 crystals of 4 atoms" in card and "3 molecules of 2 atoms" in card
    assert DOMAIN in card


def test_domains_survive_the_folder_and_a_foreign_file_is_none(
    folder: Path, tmp_path: Path
) -> None:
    loaded = model_zoo.load(folder)
    again = domain_file(domains_of(loaded.attachments))
    assert again[DOMAIN] == loaded.attachments[DOMAIN]
    assert loaded.domains["molecules"].pairs == {"Cu-Cu": 2.2, "Cu-Au": 2.4, "Au-Au": 2.5}

    place = model_zoo.save_model(tmp_path / "m", loaded.potential, loaded.record)
    assert model_zoo.load(place).domains == {}
    model_zoo.save_model(place, loaded.potential, loaded.record, attachments={DOMAIN: b"{}"})
    rewrite(place, DOMAIN, b'{"format": 1, "levels": {"crystals": {"pairs": {"Qq-Cu": 1}}}}')
    assert model_zoo.load(place).domains == {}
    assert told(model_zoo.load(place), "crystals", DIMER) == []


def test_members_of_an_ensemble_share_the_domain_of_their_head() -> None:
    from evenfield.model_zoo.engines.domain_watch import DomainWatch

    record = ModelRecord(name="m", elements={"PBE": ["Cu"], "PBE, member 1": ["Cu"]})
    levels = ["PBE", "PBE, member 1", "EMT"]
    domains = {"PBE": domain(CRYSTAL)}
    watch = DomainWatch.of(record, levels, "PBE, member 1", domains)
    assert watch is not None and watch.level == "PBE"
    assert DomainWatch.of(record, levels, "EMT", domains) is None
