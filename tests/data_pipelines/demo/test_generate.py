"""The demo data: same bytes from the same seed, correct labels, and failures that are listed."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule as g2_molecule
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evenfield.core.destination import DestinationError
from evenfield.core.errors import MissingPackageError
from evenfield.core.files import FileError
from evenfield.data_pipelines.demo import generate, oracles
from evenfield.data_pipelines.demo import geometry as generate_geometry
from evenfield.data_pipelines.demo import labelled_structure as labelled
from evenfield.data_pipelines.demo.clusters import CATIONS
from evenfield.data_pipelines.demo.generate import GeneratorConfig
from evenfield.data_pipelines.demo.labelled_structure import (
    FAMILIES,
    MAX_ATTEMPTS,
    labelled_structure,
)
from evenfield.data_pipelines.demo.metals import _surface


SAMPLE = Path(generate.__file__).with_name("sample") / "demo_sample.extxyz.gz"
SAMPLE_SEED = 1
CONFIG_TYPES = {"cluster", "molecule", "crystal", "alloy", "surface", "vacancy"}
seeds = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def sample() -> list[Atoms]:
    return ase.io.read(SAMPLE, ":")


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> tuple[generate.GenerationReport, Path]:
    folder = tmp_path_factory.mktemp("generated")
    return generate.generate(
        GeneratorConfig(num_structures=20, workers=2), folder / "two.extxyz.gz"
    ), folder


def test_bytes_do_not_depend_on_the_number_of_workers(generated):
    report, folder = generated
    alone = generate.generate(
        GeneratorConfig(num_structures=20, workers=1), folder / "one.extxyz.gz"
    )
    assert alone.path.read_bytes() == report.path.read_bytes()
    assert alone.failures_path.read_bytes() == report.failures_path.read_bytes()


def test_a_structure_depends_on_seed_and_index_only(generated):
    report, _ = generated
    frames = ase.io.read(report.path, ":")
    atoms, _ = labelled_structure(seed=0, index=13)
    np.testing.assert_allclose(atoms.positions, frames[13].positions, atol=1e-8)
    assert atoms.get_potential_energy() == pytest.approx(
        frames[13].get_potential_energy(), abs=1e-6
    )
    other, _ = labelled_structure(seed=1, index=13)
    assert len(other) != len(atoms) or not np.allclose(other.positions, atoms.positions)


def test_one_kind_of_structures(tmp_path):
    """Organic molecules on request, and none otherwise."""
    config = GeneratorConfig(num_structures=12, only="organic", workers=1)
    report = generate.generate(config, tmp_path / "organic.extxyz")
    assert report.structures_by_config_type == {"organic": 12}
    assert set(report.structures_by_element) <= {"H", "C", "N", "O"}
    frames = ase.io.read(report.path, ":")
    assert frames[3].info["structure_id"] == "embedded-organic-0-3"
    assert {atoms.info["level_of_theory"] for atoms in frames} == {"GFN1-xTB"}
    assert min(len(atoms) for atoms in frames) >= 4
    # the file is known as a generated one, and may be replaced
    generate.generate(config, report.path, overwrite=True)


def test_report_and_failures_file_agree_with_the_frames(generated):
    report, folder = generated
    frames = ase.io.read(report.path, ":")
    assert [atoms.info["structure_id"] for atoms in frames] == [
        f"embedded-0-{k}" for k in range(20)
    ]
    assert report.structures_by_config_type == Counter(
        atoms.info["config_type"] for atoms in frames
    )
    assert report.structures_by_element == Counter(
        s for atoms in frames for s in set(atoms.symbols)
    )
    failures = json.loads((folder / "two.extxyz.gz.failures.json").read_text())
    assert failures["num_structures"] == 20 and failures["seed"] == 0
    assert (
        failures["num_failures"]
        == len(failures["failures"])
        == sum(report.failures_by_reason.values())
    )


def test_failures_are_named_and_drawn_again(monkeypatch):
    messages = iter(["SCF not converged in 100 cycles", "something new"])

    def failing_label(atoms, level_of_theory):
        message = next(messages, None)
        if message:
            raise oracles.RejectedStructure("calculation_failed", message)
        return real_label(atoms, level_of_theory)

    real_label = labelled.label
    monkeypatch.setattr(labelled, "label", failing_label)
    atoms, failures = labelled_structure(seed=0, index=0)
    assert atoms.info["structure_id"] == "embedded-0-0"
    assert [(f.index, f.attempt, f.reason) for f in failures[:2]] == [
        (0, 0, "calculation_failed"),
        (0, 1, "calculation_failed"),
    ]
    text = generate._failures_json(GeneratorConfig(num_structures=1), failures[:2])
    first = json.loads(text)["failures"][0]
    assert set(first) == {"index", "attempt", "family", "formula", "reason", "detail"}
    assert first["family"] in FAMILIES and first["detail"] == "SCF not converged in 100 cycles"


def test_a_structure_that_always_fails_is_given_up(monkeypatch):
    monkeypatch.setattr(labelled, "has_close_contact", lambda atoms: True)
    atoms, failures = labelled_structure(seed=0, index=0)
    assert atoms is None
    assert [failure.reason for failure in failures] == ["atoms_too_close"] * MAX_ATTEMPTS


def test_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    class Interrupted(generate.Progress):
        def advance(self, task_id, advance=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(generate, "Progress", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(
            GeneratorConfig(num_structures=200, workers=1), tmp_path / "data.extxyz.gz"
        )
    assert list(tmp_path.iterdir()) == []


def test_missing_tblite_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'evenfield\[demo\]'"):
        generate.generate(GeneratorConfig(num_structures=1), tmp_path / "data.extxyz")
    with pytest.raises(MissingPackageError, match=r"pip install 'evenfield\[demo\]'"):
        oracles.oracle_calculator("GFN1-xTB")


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"data\.db"):
        generate.generate(GeneratorConfig(num_structures=1), tmp_path / "data.db")
    for wrong in ({"num_structures": 0}, {"workers": 0}, {"seed": -1}, {"elements": ["H"]}):
        with pytest.raises(ValidationError):
            GeneratorConfig(**wrong)


def test_sample_frames_are_complete(sample):
    assert len(sample) == 160
    assert len({atoms.info["structure_id"] for atoms in sample}) == 160
    assert {atoms.info["config_type"] for atoms in sample} == CONFIG_TYPES
    for atoms in sample:
        periodic = atoms.info["config_type"] not in ("cluster", "molecule")
        assert atoms.info["level_of_theory"] == ("EMT" if periodic else "GFN1-xTB")
        assert atoms.info["group"].startswith(atoms.info["config_type"] + ":")
        assert list(atoms.pbc) == [periodic] * 3
        assert ("stress" in atoms.calc.results) == periodic
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= oracles.LARGEST_FORCE
        assert not atoms.has("initial_magmoms")
        assert not generate_geometry.has_close_contact(atoms)


def test_sample_has_a_long_tail(sample):
    counts = Counter(symbol for atoms in sample for symbol in set(atoms.symbols))
    assert len(counts) >= 50
    assert max(counts.values()) >= 40
    assert sum(count <= 2 for count in counts.values()) >= 20


def test_sample_is_what_the_generator_makes(sample):
    for index in (0, 40, 80, 120):
        atoms, _ = labelled_structure(SAMPLE_SEED, index)
        assert atoms.info == sample[index].info
        np.testing.assert_allclose(atoms.positions, sample[index].positions, atol=2e-6)


def test_sample_labels_are_those_of_the_oracles(sample):
    for atoms in sample[::8]:
        again = oracles.label(atoms, atoms.info["level_of_theory"])
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=2e-3)
        if atoms.pbc.any():
            np.testing.assert_allclose(again.get_stress(), atoms.get_stress(), atol=1e-6)


@pytest.mark.parametrize("config_type", sorted(CONFIG_TYPES))
def test_forces_are_the_slope_of_the_energy(sample, config_type):
    atoms = next(atoms for atoms in sample if atoms.info["config_type"] == config_type)
    direction = np.random.default_rng(0).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    energies = []
    for step in (-1e-3, 1e-3):
        moved = Atoms(
            atoms.numbers, atoms.positions + step * direction, cell=atoms.cell, pbc=atoms.pbc
        )
        energies.append(oracles.label(moved, atoms.info["level_of_theory"]).get_potential_energy())
    slope = (energies[1] - energies[0]) / 2e-3
    assert -slope == pytest.approx(np.vdot(atoms.get_forces(), direction), abs=2e-3)


def test_stress_is_the_slope_of_the_energy_and_positive_under_tension(sample):
    atoms = next(atoms for atoms in sample if atoms.info["config_type"] == "alloy")
    energies = []
    for strain in (-1e-4, 1e-4):
        strained = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        strained.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        energies.append(oracles.label(strained, "EMT").get_potential_energy())
    slope = (energies[1] - energies[0]) / 2e-4 / atoms.get_volume()
    assert slope == pytest.approx(atoms.get_stress()[:3].sum(), abs=1e-5)


def test_oracles_refuse_what_they_cannot_label(sample):
    metal = next(atoms for atoms in sample if atoms.pbc.any())
    with pytest.raises(oracles.OracleError, match="periodic"):
        oracles.label(metal, "GFN1-xTB")
    with pytest.raises(oracles.OracleError, match="'PBE'"):
        oracles.label(metal, "PBE")
    with pytest.raises(oracles.RejectedStructure, match="force_too_large"):
        oracles.label(Atoms("H2", [(0, 0, 0), (0, 0, 0.3)]), "GFN1-xTB")


@settings(max_examples=40)
@given(seed=seeds, family=st.sampled_from(sorted(FAMILIES)))
def test_every_builder_gives_a_bare_structure(seed, family):
    atoms = FAMILIES[family].build(np.random.default_rng(seed))
    assert 1 <= len(atoms) <= 32
    assert np.isfinite(atoms.positions).all()
    assert set(atoms.arrays) == {"numbers", "positions"}
    assert atoms.info["config_type"] in CONFIG_TYPES | {"organic", "even_cluster"}
    assert np.array_equal(atoms.positions, atoms.positions.round(6))
    if family == "metal":
        assert 8 < atoms.get_volume() / len(atoms) < 70  # A^3; the upper end are slabs


@settings(max_examples=20)
@given(seed=seeds)
def test_slabs_do_not_see_their_images(seed):
    slab = _surface(np.random.default_rng(seed))
    height = slab.cell[2, 2] - np.ptp(slab.positions[:, 2])
    assert height > 10  # A; EMT reaches 6 A


@settings(max_examples=30)
@given(first=st.integers(1, 86), second=st.integers(1, 86), seed=seeds)
def test_stretching_scales_bonds_with_covalent_radii(first, second, seed):
    direction = np.random.default_rng(seed).normal(size=3)
    parent = Atoms("N2", [np.zeros(3), 1.1 * direction / np.linalg.norm(direction)])
    child = Atoms([first, second], parent.positions)
    child.positions = generate_geometry.stretched(parent, child)
    ratio = (covalent_radii[first] + covalent_radii[second]) / (2 * covalent_radii[7])
    assert child.get_distance(0, 1) == pytest.approx(1.1 * ratio, rel=1e-6)


@pytest.mark.parametrize("name", ["C6H6", "CH3CONH2", "Li2", "ClF3"])
def test_stretching_to_the_same_elements_changes_nothing(name):
    molecule = g2_molecule(name)
    still = Atoms(molecule.symbols, generate_geometry.stretched(molecule, molecule))
    np.testing.assert_allclose(still.get_all_distances(), molecule.get_all_distances(), atol=1e-9)


@pytest.mark.parametrize("name", ["demo.extxyz", "demo.extxyz.gz"])
def test_a_list_of_failures_makes_no_file_a_generated_one(tmp_path, name):
    config = GeneratorConfig(num_structures=1, workers=1)
    out = tmp_path / name
    failures = tmp_path / f"{name}.failures.json"
    failures.write_text(generate._failures_json(config, []))
    frame = b"1\nProperties=species:S:1:pos:R:3 energy=1\nH 0 0 0\n"
    out.write_bytes(gzip.compress(frame) if name.endswith(".gz") else frame)
    before = out.read_bytes()
    with pytest.raises(DestinationError, match="already exists and holds a file of"):
        generate.generate(config, out, overwrite=True)
    assert out.read_bytes() == before

    # what was generated is known without the list
    out.unlink()
    generate.generate(config, out)
    failures.unlink()
    with pytest.raises(DestinationError, match="replace it with --overwrite"):
        generate.generate(config, out)
    generate.generate(config, out, overwrite=True)


@pytest.mark.parametrize("name", ["demo.extxyz", "demo.extxyz.failures.json"])
def test_overwrite_replaces_no_file_of_the_user(tmp_path, name):
    (tmp_path / name).write_text("years of work")
    config = GeneratorConfig(num_structures=1, workers=1)
    with pytest.raises(DestinationError, match="already exists and holds a file of 13 bytes"):
        generate.generate(config, tmp_path / "demo.extxyz", overwrite=True)
    assert (tmp_path / name).read_text() == "years of work"


def test_further_clusters_state_that_they_test(tmp_path):
    config = GeneratorConfig(num_structures=3, even_test=4, workers=1)
    report = generate.generate(config, tmp_path / "with.extxyz")
    alone = generate.generate(
        GeneratorConfig(num_structures=3, workers=1), tmp_path / "without.extxyz"
    )
    frames = ase.io.read(report.path, ":")
    # those for training do not change by the others
    assert frames[:3] == ase.io.read(alone.path, ":")
    assert [atoms.info.get("split") for atoms in frames] == [None] * 3 + ["test"] * 4
    for atoms in frames[3:]:
        assert atoms.info["config_type"] == "even_cluster"
        assert len(set(atoms.symbols) & set(CATIONS)) == 2

    with pytest.raises(ValidationError, match="only=even_cluster makes the same structures"):
        GeneratorConfig(only="even_cluster", even_test=1)
