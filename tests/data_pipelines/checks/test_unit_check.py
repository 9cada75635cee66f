"""The check of units and signs: right labels pass, wrong ones are refused with the remedy."""

from __future__ import annotations

import dataclasses
import sys

import ase.io
import numpy as np
import pytest
from ase import units

from evenfield.cli import main
from evenfield.core.labels import LABELS
from evenfield.data_pipelines.checks import unit_check
from evenfield.data_pipelines.checks.unit_check import examine
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.read import structure_from_atoms
from evenfield.data_pipelines.structure import BadRecordError


CONFIG = SourceConfig(level_of_theory="EMT")


@pytest.fixture(scope="module")
def structures(alloys):
    return [structure_from_atoms(atoms, CONFIG, str(k)) for k, atoms in enumerate(alloys)]


def scaled(structures, **factors):
    """Fields and labels of structures times a factor."""
    changed = []
    for structure in structures:
        values = {key: getattr(structure, key) * factor for key, factor in factors.items()}
        labels = {key: value for key, value in values.items() if key in LABELS}
        fields = {key: value for key, value in values.items() if key not in LABELS}
        changed.append(dataclasses.replace(structure, **fields).with_labels(**labels))
    return changed


def outcomes(structures, config=CONFIG):
    return {finding.test: finding for finding in examine(structures, config)}


def test_right_labels_pass(structures):
    found = outcomes(structures)
    assert not [f.text for f in found.values() if f.outcome == "fail"]
    assert found["energy against forces"].value == pytest.approx(1, abs=0.1)
    assert found["energy against stress"].value == pytest.approx(1, abs=0.1)
    for test in ("bond lengths", "net force", "pressure against volume", "size of the pressure"):
        assert found[test].outcome == "pass"


BOHR, PER_BOHR = 1 / units.Bohr, units.Bohr / units.Hartree


@pytest.mark.parametrize(
    ("factors", "test", "remedy"),
    [
        ({"forces": -1}, "energy against forces", "set columns.forces=forces units.forces=-eV/A"),
        ({"forces": PER_BOHR}, "energy against forces", "units.forces=Hartree/Bohr"),
        ({"forces": units.mol / units.kcal}, "energy against forces", "units.forces=kcal/mol/A"),
        ({"forces": 1e3}, "energy against forces", "units.forces=meV/A"),
        ({"stress": -1}, "energy against stress", "units.stress=-eV/A^3"),
        (
            {"stress": -1},
            "pressure against volume",
            "set columns.stress=stress units.stress=-eV/A^3",
        ),
        ({"stress": 1 / units.GPa}, "energy against stress", "units.stress=GPa"),
        ({"stress": -10 / units.GPa}, "energy against stress", "units.stress=-kbar"),
        (
            {"energy": 1 / units.Hartree},
            "energy against stress",
            "set columns.energy=energy units.energy=Hartree",
        ),
        ({"energy": units.mol / units.kcal}, "energy against forces", "units.energy=kcal/mol"),
        ({"positions": BOHR, "cell": BOHR}, "bond lengths", "set length_unit=Bohr"),
        ({"positions": BOHR, "cell": BOHR}, "energy against forces", "set length_unit=Bohr"),
    ],
)
def test_wrong_label_is_named_with_its_remedy(structures, factors, test, remedy):
    finding = outcomes(scaled(structures, **factors))[test]
    assert finding.outcome == "fail"
    assert finding.text.endswith(remedy)


def labelled_walk(num_frames: int, scatter: float, slope: float = 1.0, seed: int = 4):
    """Frames of a walk whose energies change by `slope` times the work, with scatter in eV."""
    rng = np.random.default_rng(seed)
    positions = np.array([[0.0, 0, 0], [2.6, 0, 0], [0, 2.6, 0], [2.6, 2.6, 0.3]])
    frames = []
    for index in range(num_frames):
        positions = positions + rng.normal(0, 0.05, positions.shape)
        # springs to the places of the first frame: the midpoint rule is exact for them
        away = positions - np.array([[0.0, 0, 0], [2.6, 0, 0], [0, 2.6, 0], [2.6, 2.6, 0.3]])
        energy = 0.5 * 8 * (away**2).sum() * slope + rng.normal(0, scatter)
        frame = structure_from_atoms(ase.Atoms("Cu4", positions), CONFIG, str(index))
        frames.append(frame.with_labels(energy=energy, forces=-8 * away))
    return frames


def test_slope_of_few_scattered_pairs_decides_nothing():
    """A right set: from so few pairs, slopes of 0.5 and 1.5 are chance."""
    texts = []
    for seed in range(60):
        walk = labelled_walk(9, scatter=0.1, seed=seed)
        texts.append(outcomes(walk)["energy against forces"].text)
    assert not [text for text in texts if text.startswith("energy changes by")]
    # some of them are outside of what is called right
    assert [text for text in texts if "which decides nothing" in text]


@pytest.mark.parametrize("slope", [0.5, 2.0, -1.0])
def test_wrong_slope_of_the_same_number_of_pairs_is_found_where_they_agree(slope):
    found = outcomes(labelled_walk(10, scatter=0.005, slope=slope))["energy against forces"]
    assert found.outcome == "fail"
    assert found.value == pytest.approx(slope, rel=0.1)


def test_remedy_starts_from_the_unit_that_was_stated(structures):
    config = SourceConfig(
        level_of_theory="EMT", columns={"forces": "F"}, units={"forces": "Hartree/Bohr"}
    )
    taken_for_atomic_units = scaled(structures, forces=units.Hartree / units.Bohr)
    finding = outcomes(taken_for_atomic_units, config)["energy against forces"]
    assert finding.text.endswith(": set units.forces=eV/A")


def test_forces_that_are_something_else_do_not_sum_to_zero(structures):
    rng = np.random.default_rng(0)
    arrows = [s.with_labels(forces=rng.normal(1, 1, (len(s), 3))) for s in structures]
    finding = outcomes(arrows)["net force"]
    assert finding.outcome == "fail" and "columns.forces names another quantity" in finding.text


def test_negated_forces_show_without_any_energy(structures):
    frames = [s.with_labels(energy=None, forces=-s.forces) for s in structures]
    found = outcomes(frames * 3)
    assert found["energy against forces"].outcome == "skipped"
    assert found["bonds pull back"].outcome == "fail"


def test_energies_in_kcal_show_without_forces():
    energies = np.random.default_rng(0).normal(-4, 0.5, 60)
    frames = [
        structure_from_atoms(
            ase.Atoms(f"H{1 + k % 5}O", np.arange(2 + k % 5)[:, None] * [[1.0, 0, 0]]),
            CONFIG,
            str(k),
        )
        for k in range(60)
    ]
    right = [s.with_labels(energy=e * len(s)) for s, e in zip(frames, energies, strict=True)]
    assert outcomes(right)["energies about the E0 fit"].outcome == "pass"
    wrong = outcomes(scaled(right, energy=units.mol / units.kcal))["energies about the E0 fit"]
    assert wrong.outcome == "fail" and "check units.energy" in wrong.text


def test_what_the_data_cannot_decide_is_skipped_and_said(structures):
    findings = examine(structures[:3], CONFIG)
    assert {f.outcome for f in findings} == {"skipped"}
    assert all("too few" in f.text for f in findings)


# --- on the command line


def test_a_part_of_bad_records_is_not_read_to_its_end(monkeypatch):
    read = []

    def bad_records(part, config):
        for number in range(3000):
            read.append(number)
            yield BadRecordError("is bad")

    monkeypatch.setattr(unit_check, "read_part", bad_records)
    monkeypatch.setattr(unit_check, "sample_parts", lambda source, config, count: [None] * 2)
    assert unit_check.check_units("anywhere", CONFIG).num_structures == 0
    assert len(read) == 2 * (unit_check.SAMPLE_SIZE // 2)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["evenfield", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr()


@pytest.fixture
def negated(alloys, tmp_path):
    frames = [atoms.copy() for atoms in alloys]
    for frame, atoms in zip(frames, alloys, strict=True):
        frame.info["E"], frame.arrays["F"] = atoms.get_potential_energy(), -atoms.get_forces()
    ase.io.write(tmp_path / "mine.extxyz", frames)
    return tmp_path / "mine.extxyz"


WORDS = ["level_of_theory=EMT", "columns.energy=E", "units.energy=eV", "columns.forces=F"]


def test_conversion_refuses_then_obeys(monkeypatch, capsys, negated, tmp_path):
    code, said = run(
        monkeypatch,
        capsys,
        "data",
        "convert",
        negated,
        tmp_path / "out",
        *WORDS,
        "units.forces=eV/A",
    )
    assert code == 1 and said.err.count("\n") == 1
    assert said.err.startswith(
        f"error: {negated}: units or signs look wrong in 24 sampled structures: "
    )
    assert "set units.forces=-eV/A" in said.err and "--trust-units" in said.err
    assert not (tmp_path / "out").exists()
    trusted = (
        "data",
        "convert",
        negated,
        tmp_path / "out",
        *WORDS,
        "units.forces=eV/A",
        "--trust-units",
    )
    assert run(monkeypatch, capsys, *trusted)[0] == 0
    corrected = ("data", "convert", negated, tmp_path / "corrected", *WORDS, "units.forces=-eV/A")
    assert run(monkeypatch, capsys, *corrected)[0] == 0


def test_findings_can_be_looked_at(monkeypatch, capsys, negated):
    code, said = run(
        monkeypatch, capsys, "data", "check-units", negated, *WORDS, "units.forces=-eV/A"
    )
    assert code == 0
    assert "pass    bonds pull back: correlation -0." in said.out
    assert (
        "skipped energy against forces: too few pairs of close frames (0)" in said.out
    )  # the cells differ
