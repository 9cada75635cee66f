"""Splits of whole data sets: stated ones are kept, hashed ones are corrected where they must be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.convert.splits import split_of
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import SPLITS, BadRecordError, Structure


CONFIG = ConvertConfig(level_of_theory="EMT", trust_units=True)
ORIGIN = {"file": "made", "sha256": ""}


def frames(symbol: str, number: int, seed: int = 0) -> list[Atoms]:
    """Rattled crystals of one element, labelled by EMT, no two of them alike."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        atoms = bulk(symbol, cubic=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        energy = atoms.get_potential_energy()
        forces = atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


def structure(atoms: Atoms, name: str, group: str, **fields) -> Structure:
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    level = fields.pop("level_of_theory", "EMT")
    return replace(Structure.from_atoms(atoms, level, name, group, **labels), **fields)


def group_in(split: str, config: ConvertConfig = CONFIG) -> str:
    """A group that the hash puts into a split."""
    return next(f"g{k}" for k in range(1000) if split_of(f"g{k}", config) == split)


def ids(folder: Path, split: str) -> set[str]:
    return {one.structure_id for one in iter_structures(folder, split)}


def counts(info: dict) -> list[int]:
    return [info["num_structures"][split] for split in SPLITS]


# --- names of files


def test_train_val_test_files_are_the_splits(tmp_path):
    source = tmp_path / "bench"
    source.mkdir()
    for seed, (name, number) in enumerate({"train": 12, "val": 5, "test": 3}.items()):
        ase.io.write(source / f"{name}.extxyz", frames("Cu", number, seed))

    words = ["data", "convert", str(source), str(tmp_path / "out"), "level_of_theory=EMT"]
    done = CliRunner().invoke(app, [*words, "--trust-units", "--workers", "1"])

    assert done.exit_code == 0, done.output
    assert ids(tmp_path / "out", "test") == {"test-0", "test-1", "test-2"}
    assert len(ids(tmp_path / "out", "valid")) == 5
    assert "splits as the names of the files state them" in done.output
    pooled = CONFIG.model_copy(update={"split_by": "structure"})
    info = convert(source, tmp_path / "pooled", pooled, workers=1)
    assert ids(tmp_path / "pooled", "test") != {"test-0", "test-1", "test-2"}
    assert info["split_files"] == {}


def test_files_of_one_name_in_many_folders_have_ids_of_their_own(tmp_path):
    for seed, name in enumerate("ab"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        ase.io.write(tmp_path / "runs" / name / "md.extxyz", frames("Cu", 4, seed))
    everything = CONFIG.model_copy(update={"valid_share": 0.0, "test_share": 0.0})
    convert(tmp_path / "runs", tmp_path / "out", everything, workers=1)
    expected = {f"{name}/md-{k}" for name in "ab" for k in range(4)}
    assert ids(tmp_path / "out", "train") == expected


def test_one_structure_at_two_levels_of_theory_is_no_duplicate(tmp_path):
    atoms = frames("Cu", 1)[0]
    one = structure(atoms, "mp-1", "g", split="train")
    other = replace(one, level_of_theory="r2SCAN")
    info = write_data_set([one, other], tmp_path / "out", ORIGIN, CONFIG)
    assert counts(info) == [2, 0, 0]
    with pytest.raises(BadRecordError, match="has the id 'mp-1'"):
        write_data_set([one, other, one], tmp_path / "more", ORIGIN, CONFIG)


# --- few groups


@pytest.mark.parametrize("number", [3, 10, 40, 200])
def test_one_composition_gets_all_splits_in_runs(tmp_path, number):
    ase.io.write(tmp_path / "md.extxyz", frames("Cu", number))
    info = convert(tmp_path / "md.extxyz", tmp_path / "out", CONFIG, workers=1)
    assert info["splits"]["cut_into_runs"]
    shares = np.array(counts(info)) / number
    assert min(counts(info)) >= 1
    if number >= 40:
        assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)

    # consecutive frames stay together
    places = sorted(int(name.split("-")[1]) for name in ids(tmp_path / "out", "test"))
    gaps = [after - before for before, after in itertools.pairwise(places)]
    num_runs = 1 + sum(gap > 1 for gap in gaps)
    assert num_runs <= 2


def test_one_structure_is_for_training(tmp_path):
    ase.io.write(tmp_path / "one.extxyz", frames("Cu", 1))
    assert counts(convert(tmp_path / "one.extxyz", tmp_path / "out", CONFIG)) == [1, 0, 0]


def test_a_group_that_the_user_named_is_not_divided(tmp_path):
    made = [structure(atoms, f"s{k}", "run 1") for k, atoms in enumerate(frames("Cu", 30))]
    info = write_data_set(made, tmp_path / "out", ORIGIN, CONFIG)
    assert counts(info) == [30, 0, 0]


# --- elements, levels, near copies


def test_every_element_and_level_is_in_training(tmp_path):
    made = [
        structure(atoms, f"{symbol}{k}", group_in(split, CONFIG), level_of_theory=level)
        for symbol, split, level in (
            ("Cu", "train", "EMT"),
            ("Ni", "test", "EMT"),
            ("Cu", "valid", "other"),
        )
        for k, atoms in enumerate(frames(symbol, 4, seed=len(symbol + split)))
    ]
    made = [replace(one, structure_id=f"s{k}") for k, one in enumerate(made)]
    info = write_data_set(made, tmp_path / "out", ORIGIN, CONFIG)
    train = list(iter_structures(tmp_path / "out", "train"))
    assert {29, 28} == {int(z) for one in train for z in one.elements}
    assert {one.level_of_theory for one in train} == {"EMT", "other"}
    assert info["splits"]["moved_into_training"] == 8
    assert info["splits"]["elements_not_in_training"] == {}


def test_every_element_of_a_level_is_in_training_at_this_level(tmp_path):
    """Copper at level "other" is held out by its hash, although "EMT" trains on copper."""
    made = []
    for symbol, split, level in (
        ("Cu", "train", "EMT"),
        ("Ni", "train", "other"),
        ("Cu", "test", "other"),
        ("Cu", "valid", "other"),
    ):
        group = group_in(split, CONFIG)
        for atoms in frames(symbol, 4, seed=len(made)):
            name = f"s{len(made)}"
            made.append(structure(atoms, name, group, level_of_theory=level))
    info = write_data_set(made, tmp_path / "out", ORIGIN, CONFIG)
    learned = read_census(tmp_path / "out")["levels_of_theory"]["other"]["train_elements"]
    assert learned == {"Ni": 4, "Cu": 4}
    # the other half of the copper is still held out
    assert info["splits"]["moved_into_training"] == 4
    assert info["splits"]["elements_not_in_training"] == {}


def test_an_element_that_is_held_out_on_purpose_is_named(tmp_path):
    nickel = [structure(a, f"n{k}", "n", split="test") for k, a in enumerate(frames("Ni", 3))]
    copper = [structure(a, f"c{k}", "c", split="train") for k, a in enumerate(frames("Cu", 3))]
    other = replace(copper[0], structure_id="o", level_of_theory="HF", split="valid")
    info = write_data_set([*nickel, *copper, other], tmp_path / "out", ORIGIN, CONFIG)
    assert counts(info) == [3, 1, 3]
    assert info["splits"]["elements_not_in_training"] == {"EMT": ["Ni"]}
    assert info["splits"]["levels_not_in_training"] == ["HF"]


def test_near_copies_in_different_groups_are_on_one_side(tmp_path):
    made = frames("Cu", 60)
    structures = [structure(atoms, f"s{k}", f"run {k // 3}") for k, atoms in enumerate(made)]
    twins = [structure(made[3 * k], f"twin{k}", f"copy {k}") for k in range(20)]
    info = write_data_set([*structures, *twins], tmp_path / "out", ORIGIN, CONFIG)
    # frames that are alike by chance are taken for copies too
    assert info["near_duplicates"]["groups"] >= 20
    assert info["near_duplicates"]["groups_in_train_and_test"] == 0
    assert info["splits"]["moved_to_near_copies"] > 0
    sides = {}
    for split in SPLITS:
        for one in iter_structures(tmp_path / "out", split):
            sides.setdefault(one.group, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())


def test_near_copies_that_chain_everything_are_left_apart(tmp_path):
    made = frames("Cu", 61)
    structures = []
    for k in range(60):
        # each group shares a frame with the next
        structures.append(structure(made[k], f"a{k}", f"g{k}"))
        structures.append(structure(made[k + 1], f"b{k}", f"g{k}"))
    info = write_data_set(structures, tmp_path / "out", ORIGIN, CONFIG)
    assert info["splits"]["near_copies_left_apart"]
    assert min(counts(info)) > 0
