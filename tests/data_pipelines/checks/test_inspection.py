"""Inspection: planted outliers are found by id, split and reason; counts are those of numpy."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ase.neighborlist
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import chemical_symbols, covalent_radii
from ase.units import GPa
from typer.testing import CliRunner

from evenfield.cli import app, main
from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.checks import inspection as module
from evenfield.data_pipelines.checks.inspection import FORCE_EDGES, Inspection, inspect
from evenfield.data_pipelines.checks.inspection_page import write_inspection
from evenfield.data_pipelines.checks.inspection_picture import MAX_LEVELS, shown_levels
from evenfield.data_pipelines.checks.outliers import MAX_LISTED, Spread
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import BrokenDataSetError
from evenfield.data_pipelines.structure import SPLITS, Structure, full_stress


@pytest.fixture(scope="module")
def alloy_walk() -> list[Structure]:
    """200 strained and rattled crystals of Cu and Au with EMT's labels, named s-0 to s-199."""
    rng, found = np.random.default_rng(3), []
    for k in range(200):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols = rng.choice(["Cu", "Au"], 4)
        vegard = 1 + 0.13 * np.mean(atoms.numbers == 79)  # lattice constants of Cu and Au
        atoms.set_cell(atoms.cell * vegard * rng.normal(1, 0.01), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.03, (4, 3))
        atoms.calc = EMT()
        found.append(
            Structure.from_atoms(
                atoms,
                "EMT",
                f"s-{k}",
                f"s-{k}",
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                stress=full_stress(atoms.get_stress()),
            )
        )
    return found


def inspected(structures: Sequence[Structure], folder: Path) -> Inspection:
    """Written as a data set, then inspected."""
    origin = {"file": "made", "sha256": "", "config": {}}
    write_data_set(structures, folder, origin, ConvertConfig())
    return inspect(folder)


def everything(folder: Path) -> list[Structure]:
    structures = []
    for split in SPLITS:
        structures += iter_structures(folder, split)
    return structures


def test_clean_set_has_no_outliers(alloy_walk, tmp_path):
    found = inspected(alloy_walk, tmp_path)
    assert found.num_structures == found.num_sampled == len(alloy_walk)
    assert set(found.outliers) == {"energy", "force", "pressure", "distance", "isolated"}
    for suspects in found.outliers.values():
        assert suspects.count == 0
        assert suspects.worst == []


def test_planted_outliers_are_found_by_id_split_and_reason(alloy_walk, tmp_path):
    planted = list(alloy_walk)
    planted[17] = planted[17].with_labels(energy=planted[17].energy + 40)
    forces = planted[40].forces.copy()
    forces[2] = [0, -48, 64]
    planted[40] = planted[40].with_labels(forces=forces)
    positions = planted[77].positions.copy()
    positions[1] = positions[0] + [0, 0.6, 0.8]
    planted[77] = replace(planted[77], positions=positions)
    planted[120] = planted[120].with_labels(stress=-200 * GPa * np.eye(3))
    # a pair of atoms, and a third one in the far corner of the cell
    positions = np.array([[0.0, 0, 0], [10, 10, 10], [10, 10, 12.5]])
    lonely = replace(
        planted[150],
        atomic_numbers=np.full(3, 29),
        positions=positions,
        cell=20 * np.eye(3),
    )
    planted[150] = lonely.with_labels(energy=None, forces=None)

    found = inspected(planted, tmp_path)
    split_of = {}
    for split in SPLITS:
        for structure in iter_structures(tmp_path, split):
            split_of[structure.structure_id] = split
    expected = {
        "energy": (
            "s-17",
            r"energy after E0 .* eV/atom, (9|10)\.\d+ from the median .* of EMT \(.* robust",
        ),
        "force": ("s-40", r"largest force 80 eV/A, 79\.\d+ from the median 0\.\d+ of EMT"),
        "pressure": ("s-120", r"pressure 200 GPa, "),
        "distance": (
            "s-77",
            r"(Cu|Au)-(Cu|Au) distance 1\.000 A, 0\.3\d of the sum of covalent radii \(below 0",
        ),
        "isolated": (
            "s-150",
            r"1 of 3 atoms without a neighbour within 5 A in a periodic cell, the first is 0",
        ),
    }
    for kind, (structure_id, reason) in expected.items():
        (outlier,) = found.outliers[kind].worst
        assert (outlier.structure_id, outlier.split) == (structure_id, split_of[structure_id])
        assert re.match(reason, outlier.reason)
        assert found.outliers[kind].count == 1


def test_all_outliers_are_counted_and_the_worst_listed(alloy_walk, tmp_path):
    planted = list(alloy_walk)
    # more than are listed, each larger than the one before
    large = range(0, 100, 4)
    for index in large:
        forces = np.zeros((4, 3))
        forces[0, 0] = 20.0 + index
        planted[index] = planted[index].with_labels(forces=forces)

    found = inspected(planted, tmp_path)
    suspects = found.outliers["force"]
    assert suspects.count == len(large)
    worst = sorted(large, reverse=True)[:MAX_LISTED]
    assert [suspect.structure_id for suspect in suspects.worst] == [f"s-{k}" for k in worst]


def test_isolated_atom_outside_a_cell_is_none(alloy_walk, tmp_path):
    atom = replace(
        alloy_walk[0],
        atomic_numbers=np.array([29]),
        positions=np.zeros((1, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
    ).with_labels(forces=None, stress=None, energy=None)
    found = inspected([*alloy_walk[1:], atom], tmp_path)
    assert found.outliers["isolated"].count == 0
    assert found.histograms["neighbours"].counts["EMT"][0] == 1


def test_spread_is_robust_and_ignores_missing_values():
    rng = np.random.default_rng(0)
    usual = rng.normal(5, 2, 4000)
    absurd = np.full(100, 1e6)
    values = np.concatenate([usual, absurd, [np.nan]])
    spread = Spread.of(values)
    assert spread.median == pytest.approx(5, rel=0.1)
    assert spread.sigma == pytest.approx(2, rel=0.1)

    is_far = spread.is_far(values, 0.5)
    assert is_far.sum() == len(absurd)
    missing = np.array([np.nan])
    assert Spread.of(missing) is None


@pytest.mark.parametrize("most", [5000, 50])
def test_histograms_count_what_numpy_counts(data_set, monkeypatch, most):
    monkeypatch.setattr(module, "MAX_SAMPLED", most)
    found = inspect(data_set)
    structures = everything(data_set)
    total = len(structures)
    num_sampled = min(most, total)
    sample = [structures[place * total // num_sampled] for place in range(num_sampled)]
    assert found.num_structures == total == 118
    assert found.num_sampled == num_sampled

    census = read_census(data_set)["levels_of_theory"]
    for level in ("EMT", "EMT-scaled"):
        own = [one for one in structures if one.level_of_theory == level]
        norms = np.concatenate([np.linalg.norm(one.forces, axis=1) for one in own])
        assert norms.max() < 100 and len(norms) > 100
        # smaller forces than the first edge are in the first bin
        expect_counts(found, "force", level, norms, [0, *FORCE_EDGES[1:]])

        sizes = [len(one) for one in own]
        expect_counts(found, "size", level, sizes)

        energies = [energy_after_e0(one, census[level]["e0"]) for one in own]
        edges = found.histograms["energy"].edges
        clipped = np.clip(energies, edges[0], edges[-1])
        expect_counts(found, "energy", level, clipped)

        neighbours = []
        shares = []
        for one in sample:
            if one.level_of_theory == level:
                of_atoms, smallest_share = surroundings_by_ase(one)
                neighbours += of_atoms
                shares.append(smallest_share)
        expect_counts(found, "neighbours", level, neighbours)
        expect_counts(found, "distance", level, shares)


def expect_counts(found: Inspection, quantity: str, level: str, values, edges=None) -> None:
    histogram = found.histograms[quantity]
    counts, _ = np.histogram(values, histogram.edges if edges is None else edges)
    np.testing.assert_array_equal(histogram.counts[level], counts)


def energy_after_e0(structure: Structure, e0: dict[str, float]) -> float:
    """eV/atom"""
    symbols = [chemical_symbols[number] for number in structure.atomic_numbers]
    reference = sum(e0[symbol] for symbol in symbols)
    return (structure.energy - reference) / len(structure)


def surroundings_by_ase(structure: Structure) -> tuple[list[int], float]:
    """Neighbours of each atom, and the smallest distance over two covalent radii."""
    receiver, sender, distances = ase.neighborlist.neighbor_list("ijd", structure.to_atoms(), 5.0)
    neighbours = np.bincount(receiver, minlength=len(structure))
    radii = covalent_radii[structure.atomic_numbers]
    shares = distances / (radii[receiver] + radii[sender])
    return neighbours.tolist(), shares.min()


def test_counts_by_split_and_label(data_set):
    found = inspect(data_set)
    for level, by_split in found.structures.items():
        expected_structures: Counter[str] = Counter()
        expected_labels = Counter(energy=0, forces=0, stress=0)
        for split in SPLITS:
            for structure in iter_structures(data_set, split):
                if structure.level_of_theory == level:
                    expected_structures[split] += 1
                    expected_labels.update(structure.labels.keys())
        assert by_split == expected_structures
        assert found.labels[level] == expected_labels
    assert found.labels["EMT"]["stress"] < found.labels["EMT"]["energy"]


def test_energy_of_an_element_without_e0_is_counted_apart(alloy_walk, tmp_path):
    strange = replace(alloy_walk[0], atomic_numbers=np.full(4, 47), split="test")
    found = inspected([strange, *alloy_walk[1:]], tmp_path)
    assert found.without_e0 == 1
    assert found.histograms["energy"].counts["EMT"].sum() == len(alloy_walk) - 1


def test_many_levels_and_no_labels_are_drawn(alloy_walk, tmp_path):
    levels = [f"L{number}" for number in range(9)]
    bare = []
    for index, structure in enumerate(alloy_walk[:40]):
        unlabelled = replace(structure, level_of_theory=levels[index % 9], labels={})
        bare.append(unlabelled)

    found = inspected(bare, tmp_path)
    shown = shown_levels(found)
    assert len(shown) == MAX_LEVELS
    in_groups = [level for group in shown.values() for level in group]
    assert sorted(in_groups) == levels
    assert len(shown["3 others"]) == 3
    assert found.spreads == {level: {} for level in levels}
    picture, _ = write_inspection(found)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_writes_both_files_and_a_new_conversion_takes_them_away(emt_file, tmp_path):
    folder, columns = tmp_path / "set", {"level_of_theory": "level"}
    convert(emt_file, folder, ConvertConfig(columns=columns))
    result = CliRunner().invoke(app, ["data", "inspect", str(folder)])
    assert result.exit_code == 0, result.output
    assert "118 structures at 2 levels of theory" in " ".join(result.output.split())
    page = (folder / "inspection.html").read_text()
    assert "data:image/png;base64,iVBOR" in page and "http" not in page
    assert "eV/\u00c5\u00b3" in page and "tensile-positive" in page
    info = convert(emt_file, folder, ConvertConfig(columns=columns, test_share=0.5), overwrite=True)
    assert len(everything(folder)) == sum(info["num_structures"].values()) == 118
    # they showed the data set that was there before
    assert not (folder / "inspection.html").exists()
    assert not (folder / "inspection.png").exists()


def test_names_are_text_and_never_markup(alloy_walk, tmp_path):
    # an outlier, since the page names no other structure
    named = replace(alloy_walk[0], structure_id="<b>[red]x")
    outlier = named.with_labels(forces=50 * np.eye(4)[:, :3])
    inspected([outlier, *alloy_walk[1:]], tmp_path)
    result = CliRunner().invoke(app, ["data", "inspect", str(tmp_path)])
    assert "<b>[red]x" in result.output
    page = (tmp_path / "inspection.html").read_text()
    assert "&lt;b&gt;[red]x" in page and "<b>" not in page


def test_folder_without_data_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evenfield", "data", "inspect", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {tmp_path}: not a converted data set") and error.count("\n") == 1
    )


def test_damaged_census_is_named(data_set, tmp_path):
    folder = shutil.copytree(data_set, tmp_path / "set")
    census = folder / "census.json"
    census.write_text(census.read_text().replace('"e0"', '"f0"'))
    with pytest.raises(BrokenDataSetError, match=rf"^{census}: missing or damaged: convert the"):
        inspect(folder)
