"""Reading: units, masks, columns, levels of theory, and an error for every mistake."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.core.settings import SettingsError, load_settings
from evenfield.data_pipelines.convert.convert import ConvertConfig
from evenfield.data_pipelines.sources.ase_files import read_one
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.sources.read import (
    check_columns_exist,
    list_parts,
    read_part,
    read_structures,
    structure_from_atoms,
)
from evenfield.data_pipelines.sources.records import DisagreeingLabelsError
from evenfield.data_pipelines.sources.xyz_frames import frames_of_text
from evenfield.data_pipelines.structure import BadRecordError, Structure


def frame(rows=("H 0 0 0",), properties="species:S:1:pos:R:3", info="", pbc="F F F") -> str:
    return f'{len(rows)}\nProperties={properties} {info} pbc="{pbc}"\n' + "".join(
        f"{row}\n" for row in rows
    )


def write(tmp_path: Path, text: str, name: str = "mine.extxyz") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def read(path: Path, **config) -> list[Structure]:
    source = SourceConfig(**{"level_of_theory": "PBE"} | config)
    check_columns_exist(path, source)
    return list(read_structures(path, source))


# --- what is read


def test_labels_that_ase_recognises_need_no_columns(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    ase.io.write(tmp_path / "mine.extxyz", atoms)
    ase.io.write(tmp_path / "mine.traj", atoms)
    for name in ("mine.extxyz", "mine.traj"):
        (s,) = read(tmp_path / name)
        assert s.energy == pytest.approx(expected[0], abs=1e-8)
        np.testing.assert_allclose(s.forces, expected[1], atol=1e-8)
        np.testing.assert_allclose(s.stress, expected[2], atol=1e-8)
        np.testing.assert_allclose(s.positions, atoms.positions, atol=1e-8)
        assert s.pbc.tolist() == [True] * 3 and s.atomic_numbers.tolist() == [29] * 4


@pytest.mark.parametrize(
    ("label", "unit", "factor"),
    [
        ("energy", "eV", 1.0),
        ("energy", "meV", 1e-3),
        ("energy", "Hartree", units.Hartree),
        ("energy", "Ry", units.Hartree / 2),
        ("energy", "kcal/mol", units.kcal / units.mol),
        ("energy", "kJ/mol", units.kJ / units.mol),
        ("forces", "eV/A", 1.0),
        ("forces", "Hartree/Bohr", units.Hartree / units.Bohr),
        ("forces", "Hartree/A", units.Hartree),
        ("forces", "kcal/mol/A", units.kcal / units.mol),
        ("forces", "kJ/mol/nm", units.kJ / units.mol / units.nm),
        ("stress", "GPa", units.GPa),
        ("stress", "kbar", 1e8 * units.Pascal),
        ("stress", "-kbar", -1e8 * units.Pascal),
        ("stress", "-eV/A^3", -1.0),
        ("stress", "-Hartree/Bohr^3", -units.Hartree / units.Bohr**3),
    ],
)
def test_units_become_ours(tmp_path, label, unit, factor):
    stress = "1 .5 .25 .5 2 .125 .25 .125 3"
    text = frame(["H 0 0 0 1 2 3"], "species:S:1:pos:R:3:F:R:3", f'E=7 S="{stress}"')
    column = {"energy": "E", "forces": "F", "stress": "S"}[label]
    (s,) = read(write(tmp_path, text), columns={label: column}, units={label: unit})
    raw = {
        "energy": 7.0,
        "forces": [[1, 2, 3]],
        "stress": [[1, 0.5, 0.25], [0.5, 2, 0.125], [0.25, 0.125, 3]],
    }
    np.testing.assert_allclose(getattr(s, label), factor * np.array(raw[label]), rtol=1e-9)
    assert all(getattr(s, other) is None for other in raw if other != label)


def test_stress_of_six_numbers_is_in_voigt_order(tmp_path):
    path = write(tmp_path, frame(info='S="1 2 3 4 5 6"'))
    (s,) = read(path, columns={"stress": "S"}, units={"stress": "eV/A^3"})
    assert s.stress.tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]


def test_a_nearly_symmetric_stress_is_made_symmetric(tmp_path):
    """Codes round their numbers, and symmetrise them to a tolerance."""
    path = write(tmp_path, frame(info='S="1 .02 0 .01 5 0 0 .001 9"'))
    (s,) = read(path, columns={"stress": "S"}, units={"stress": "eV/A^3"})
    np.testing.assert_allclose(
        s.stress, [[1, 0.015, 0], [0.015, 5, 0.0005], [0, 0.0005, 9]], rtol=1e-12
    )


ASYMMETRIC = "0.1 0.05 0 -0.05 0.2 0 0 0 0.3"


@pytest.mark.parametrize(
    ("key", "value", "config"),
    [
        ("stress", ASYMMETRIC, {}),
        ("virial", ASYMMETRIC, {}),
        # with letters of other alphabets, ASE reads the line
        ("name=\u00e9 stress", ASYMMETRIC, {}),
        ("S", ASYMMETRIC, {"columns": {"stress": "S"}, "units": {"stress": "eV/A^3"}}),
        ("S", "_JSON [[1, 2, 0], [0, 1, 0], [0, 0, 1]]", {"columns": {"stress": "S"}}),
        ("virial", ASYMMETRIC, {"columns": {"stress": "virial"}, "units": {"stress": "-eV"}}),
    ],
)
def test_an_asymmetric_stress_is_refused(tmp_path, key, value, config):
    """A mean over both halves, or ASE's choice of one, would hide that the numbers are wrong."""
    info = f'energy=1 Lattice="3 0 0 0 3 0 0 0 3" {key}="{value}"'
    path = write(tmp_path, frame(info=info, pbc="T T T"))
    config.setdefault("units", {"stress": "eV/A^3"} if config else {})
    with pytest.raises(BadRecordError, match="is not symmetric"):
        read(path, **config)


def test_a_truth_value_is_no_energy(tmp_path):
    path = write(tmp_path, frame(info="energy=T"))
    with pytest.raises(BadRecordError, match="which is not a number"):
        read(path)


@pytest.mark.parametrize("value", [[[1.0, 2.0], [3.0]], "low", 1j])
def test_a_label_that_is_no_array_of_numbers_is_refused(value):
    atoms = Atoms("H", info={"E": value, "level_of_theory": "PBE"})
    config = SourceConfig(columns={"energy": "E"}, units={"energy": "eV"}, level_of_theory="PBE")
    with pytest.raises(BadRecordError, match="which is not a number"):
        structure_from_atoms(atoms, config, "one")


def test_an_asymmetric_stress_of_a_database_is_refused(tmp_path):
    atoms = bulk("Cu", cubic=True)
    stress = np.fromstring(ASYMMETRIC, sep=" ").reshape(3, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, stress=stress)
    ase.io.write(tmp_path / "mine.db", atoms)
    with pytest.raises(BadRecordError, match="is not symmetric"):
        read(tmp_path / "mine.db")
    with pytest.raises(BadRecordError, match="is not symmetric"):
        structure_from_atoms(atoms, SourceConfig(level_of_theory="PBE"), "one")


def test_a_level_of_theory_of_a_whole_page_is_refused(tmp_path):
    path = write(tmp_path, frame(info=f"energy=1 level_of_theory={'PBE' * 40_000}"))
    with pytest.raises(BadRecordError, match="a name of 120000 letters"):
        read(path, level_of_theory=None)


def test_column_that_ase_recognises_can_be_given_a_unit(tmp_path):
    path = write(tmp_path, frame(["H 0 0 0 1 0 0"], "species:S:1:pos:R:3:forces:R:3", "energy=2"))
    (s,) = read(
        path,
        columns={"energy": "energy", "forces": "forces"},
        units={"energy": "Hartree", "forces": "Hartree/Bohr"},
    )
    assert s.energy == pytest.approx(2 * units.Hartree)
    assert s.forces[0, 0] == pytest.approx(units.Hartree / units.Bohr)


def test_column_is_named_where_two_columns_of_one_label_disagree(tmp_path):
    path = write(tmp_path, frame(info="energy=1 REF_energy=2"))
    both = r"record 0 has energy twice, in 'energy' and in 'REF_energy', which differ \(1 and 2\)"
    remedy = r"name the right one, as in columns\.energy=energy units\.energy=eV"
    with pytest.raises(DisagreeingLabelsError, match=rf"{both}: {remedy}"):
        read(path)
    for column, energy in (("energy", 1), ("REF_energy", 2)):
        (structure,) = read(path, columns={"energy": column}, units={"energy": "eV"})
        assert structure.energy == energy
    # both are named, but nobody says which one is right
    with pytest.raises(DisagreeingLabelsError, match=both):
        read(path, columns={"energy": ["energy", "REF_energy"]}, units={"energy": "eV"})


@pytest.mark.parametrize(
    "info",
    [
        # rounded on the way
        "energy=-3.14159265 REF_energy=-3.1416",
        # another energy by definition, which ASE's calculators give next to the energy
        "energy=-3.14159265 free_energy=-3.3",
        # predictions and parts are no second value of the label
        "energy=-3.14159265 mace_energy=-3 dispersion_energy=-1 energy_per_atom=-3",
    ],
)
def test_columns_that_agree_or_mean_something_else_are_no_disagreement(tmp_path, info):
    (structure,) = read(write(tmp_path, frame(info=info)))
    assert structure.energy == -3.14159265


def test_forces_in_two_columns_are_compared(tmp_path):
    properties = "species:S:1:pos:R:3:forces:R:3:REF_forces:R:3"
    same = write(tmp_path, frame(["H 0 0 0 1 2 3 1 2 3.001"], properties), "same.extxyz")
    assert read(same)[0].forces.tolist() == [[1, 2, 3]]
    negated = write(tmp_path, frame(["H 0 0 0 1 2 3 -1 -2 -3"], properties), "negated.extxyz")
    with pytest.raises(DisagreeingLabelsError, match=r"in 'REF_forces', which differ \(3 and -3\)"):
        read(negated)


def test_of_several_columns_each_record_is_read_from_the_one_that_it_has(tmp_path):
    path = write(tmp_path, frame(info="energy=1") + frame(info="E=2") + frame())
    config = {"columns": {"energy": ["energy", "E"]}}
    one_unit = read(path, units={"energy": "eV"}, **config)
    assert [structure.energy for structure in one_unit] == [1, 2, None]
    own_units = read(path, units={"energy": ["eV", "meV"]}, **config)
    assert [structure.energy for structure in own_units] == [1, 0.002, None]


def test_reference_columns_are_read_where_a_record_has_no_other(tmp_path):
    cell = 'Lattice="2 0 0 0 2 0 0 0 2"'
    virials = 'REF_virials="8 0 0 0 16 0 0 0 24"'
    path = write(
        tmp_path,
        frame(info="energy=1")
        + frame(info=f"REF_energy=2 level_group=SCAN {virials} {cell}", pbc="T T T"),
    )
    level = {"level_of_theory": None, "unstated_level": "mine"}
    plain, reference = read(path, reference_columns=True, **level)
    assert (plain.energy, plain.level_of_theory) == (1, "mine")
    assert (reference.energy, reference.level_of_theory) == (2, "SCAN")
    np.testing.assert_allclose(reference.stress, np.diag([-1, -2, -3]), rtol=1e-12)


@pytest.mark.parametrize(("unit", "factor"), [("-eV", -1), ("eV", 1), ("-meV", -1e-3)])
def test_virial_becomes_stress(tmp_path, unit, factor):
    """By its definition: minus the derivative of the energy by strain."""
    cell = 'Lattice="2 0 0 0 2 0 0 0 2"'
    path = write(tmp_path, frame(info=f'virial="8 0 0 0 16 0 0 0 24" {cell}', pbc="T T T"))
    (structure,) = read(path, columns={"stress": "virial"}, units={"stress": unit})
    np.testing.assert_allclose(structure.stress, factor * np.diag([1, 2, 3]), rtol=1e-12)


def test_virial_without_a_volume_is_named(tmp_path):
    path = write(tmp_path, frame(info='virial="1 0 0 0 1 0 0 0 1"'))
    with pytest.raises(BadRecordError, match=r"record 0 has 'virial', which is a stress times a"):
        read(path, columns={"stress": "virial"}, units={"stress": "-eV"})


@pytest.mark.parametrize("key", ["stress", "virial"])
def test_six_numbers_in_the_keys_that_ase_reads_as_nine(tmp_path, key):
    cell = 'Lattice="2 0 0 0 2 0 0 0 2"'
    path = write(tmp_path, frame(info=f'{key}="1 2 3 4 5 6" energy=1 {cell}', pbc="T T T"))
    (structure,) = read(path, columns={"stress": key}, units={"stress": "eV/A^3"})
    assert structure.stress.tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    assert structure.energy == 1


IN_INFO = {"columns": {"forces": "dft_forces"}, "units": {"forces": "eV/A"}}


@pytest.mark.parametrize("ending", ["extxyz", "traj", "json", "db"])
@pytest.mark.parametrize("form", ["array", "list", "flat"])
def test_forces_that_lie_among_the_values_of_the_structure_are_read(tmp_path, ending, form):
    """They were dropped without a word: forces were looked for among the values of atoms only."""
    forces = np.array([[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])
    stated = {"array": forces, "list": forces.tolist(), "flat": forces.ravel()}[form]
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1]], info={"energy": 1.0, "dft_forces": stated})
    path = tmp_path / f"mine.{ending}"
    if ending in ("json", "db"):
        with ase.db.connect(path) as database:
            database.write(atoms, data=atoms.info)
    else:
        ase.io.write(path, atoms)
    (structure,) = read(path, **IN_INFO)
    assert structure.forces.tolist() == forces.tolist()


def test_the_values_of_atoms_come_before_those_of_the_structure(tmp_path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1]], info={"dft_forces": [[9.0] * 3] * 2})
    atoms.arrays["dft_forces"] = np.ones((2, 3))
    ase.io.write(tmp_path / "mine.extxyz", atoms)
    (structure,) = read(tmp_path / "mine.extxyz", **IN_INFO)
    assert structure.forces.tolist() == np.ones((2, 3)).tolist()


def test_forces_of_one_atom_may_be_flat(tmp_path):
    atoms = Atoms("Cu", pbc=True, cell=[3, 3, 3])
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    # as some writers leave it: ASE itself does not look at the shape
    atoms.calc.results["forces"] = np.array([0.0, 0.5, 1.0])
    ase.io.write(tmp_path / "mine.traj", atoms)
    (structure,) = read(tmp_path / "mine.traj")
    assert structure.forces.tolist() == [[0, 0.5, 1]]


@pytest.mark.parametrize(
    "text",
    [
        # however a number is spelt, Python's int reads it
        "+9999999999\nenergy=1\nH 0 0 0\n",
        "9_999_999_999\nenergy=1\nH 0 0 0\n",
        "1\nProperties=species:S:1:pos:R:+900000000 energy=1\nH 0 0 0\n",
        '1\n"Properties"=species:S:1:pos:R:900000000 energy=1\nH 0 0 0\n',
        "1\nProperties = species:S:1:pos:R:9_00000000 energy=1\nH 0 0 0\n",
        # a comment of one megabyte, at which a backtracking expression would take hours
        "1\n" + "Properties=" * 100_000 + "\nH 0 0 0\n",
    ],
)
def test_small_file_takes_little_time_whatever_it_announces(tmp_path, text):
    path = write(tmp_path, text)
    before = time.process_time()
    with pytest.raises((BadRecordError, SourceError)):
        read(path)
    assert time.process_time() - before < 5


def test_gzip_file_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "mine.extxyz.gz"
    path.write_bytes(gzip.compress(b"900000\n\n" + (b"Cu 0 0 0".ljust(59) + b"\n") * 900_000))
    with pytest.raises(SourceError, match=rf"^{path}: unpacks to more than \d+ bytes"):
        read(path)


def test_frame_of_millions_of_atoms_in_a_small_gzip_file_is_refused(tmp_path):
    path = tmp_path / "mine.extxyz.gz"
    # within the limit on unpacking, which equal lines meet by a hair
    path.write_bytes(gzip.compress(b"1000001\nenergy=1\n" + b"H 0 0 0\n" * 1_000_001))
    before = time.process_time()
    with pytest.raises(BadRecordError, match="record 0 announces 1000001 atoms; at most 1,000,000"):
        read(path)
    assert time.process_time() - before < 5


def test_file_that_was_written_anew_is_read_anew(tmp_path):
    """Where its records begin was remembered by its name alone, and past the limits on frames."""
    path = write(tmp_path, frame() + frame(info="energy=2"))
    assert len(read(path)) == 2
    write(tmp_path, frame(info="energy=3"))
    assert [structure.energy for structure in read(path)] == [3]

    write(tmp_path, "+9999999999\nenergy=1\nH 0 0 0\n")
    before = time.process_time()
    with pytest.raises(BadRecordError, match="announces 9999999999 atoms"):
        read(path)
    assert time.process_time() - before < 5


def test_link_that_leads_to_itself_is_named(tmp_path):
    link = tmp_path / "loop.extxyz"
    link.symlink_to(link)
    with pytest.raises(SourceError, match=rf"^{link}: Too many levels of symbolic links"):
        read(link)


def test_mask_drops_a_label_where_it_is_true_only(tmp_path):
    path = write(
        tmp_path,
        "".join(frame(info=f"energy=1 {flag}") for flag in ("bad=T", "bad=F", "", "bad=1")),
    )
    energies = [s.energy for s in read(path, masks={"energy": "bad"})]
    assert energies == [None, 1, 1, None]


def test_label_may_be_absent_from_some_records(tmp_path):
    path = write(tmp_path, frame() + frame(info="E=3"))
    assert [s.energy for s in read(path, columns={"energy": "E"}, units={"energy": "eV"})] == [
        None,
        3,
    ]


def test_level_of_theory_comes_from_config_then_column_then_its_own_key(tmp_path):
    path = write(tmp_path, frame(info="level_of_theory=SCAN functional=PBE"))
    assert read(path, level_of_theory="GFN1")[0].level_of_theory == "GFN1"
    columns = {"level_of_theory": "functional"}
    assert read(path, level_of_theory=None, columns=columns)[0].level_of_theory == "PBE"
    assert read(path, level_of_theory=None)[0].level_of_theory == "SCAN"


def test_ids_and_groups_are_given_or_made(tmp_path):
    path = write(tmp_path, frame(["O 0 0 0", "H 0 0 1", "H 0 1 0"]) + frame(info="name=x run=7"))
    first, _ = read(path)
    assert (first.structure_id, first.group, first.split) == ("mine-0", "H2O", None)
    path.write_text(frame(info="name=x run=7 part=valid"))
    (s,) = read(path, columns={"structure_id": "name", "group": "run", "split": "part"})
    assert (s.structure_id, s.group, s.split) == ("x", "7", "valid")


def test_gzipped_file_is_the_same(tmp_path, emt_file):
    packed = tmp_path / "metals.extxyz.gz"
    packed.write_bytes(gzip.compress(emt_file.read_bytes()))
    plain, unpacked = read(emt_file), read(packed)
    assert [s.structure_id for s in plain] == [s.structure_id for s in unpacked]
    assert [s.energy for s in plain] == [s.energy for s in unpacked]
    assert len(plain) > 100


def test_structure_goes_back_to_ase_with_its_labels():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    labels = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **labels)
    back = structure_from_atoms(atoms, SourceConfig(level_of_theory="EMT"), "a").to_atoms()
    assert back == Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
    assert back.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_allclose(back.get_stress(), atoms.get_stress(), atol=1e-14)


# --- what is refused

GOOD = frame(info="energy=1")
FORCES = "species:S:1:pos:R:3:forces:R:3"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            frame(["H 0 0 0 nan 0 0"], FORCES),
            "has NaN or infinite forces: remove the label or the record",
        ),
        (frame(["H 0 0 0 inf 0 0"], FORCES), "has NaN or infinite forces"),
        (frame(info="energy=nan"), "has NaN or infinite energy"),
        (frame(["H 0 0 nan"]), "has NaN or infinite positions"),
        (
            frame(["H 0 0 0", "O 0 0 .2"]),
            r"atoms \d and \d at 0\.200 A, closer than 0\.3 A: check the length unit",
        ),
        (
            frame(info='Lattice="0.2 0 0 0 5 0 0 0 5"', pbc="T T T"),
            r"has a cell of only 0\.2 A between opposite faces",
        ),
        (frame(["X 0 0 0"]), r"has atomic number 0, outside 1\.\.118: correct the element"),
        (
            frame(["119 0 0 0"], "Z:I:1:pos:R:3"),
            r"has atomic number 119, outside 1\.\.118: correct the element",
        ),
        (frame(["Uue 0 0 0"]), r"cannot be read \(KeyError: 'Uue'\)"),
        (
            frame(pbc="T T T"),
            "periodic but its cell has no volume: give a cell or set pbc to F F F",
        ),
        (frame([]), "has no atoms: remove it"),
        (frame(info="split=extra"), "has split 'extra': use one of train, valid, test"),
        (frame(["H 0 0 0", "H 0 0 1"])[:-9], r"cannot be read \(.*\): .* it is cut off there"),
        (frame(["H 0 0"]), r"cannot be read \(.*\): write it again"),
    ],
)
def test_bad_record_is_named_with_file_and_remedy(tmp_path, record, problem):
    path = write(tmp_path, GOOD + record)
    with pytest.raises((BadRecordError, SourceError), match=rf"^{path}: record 1 .*{problem}"):
        read(path)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("REF=abc", "has energy 'abc', which is not a number: correct or remove it"),
        ('REF="1 2 3"', r"has energy of shape \(3,\): give 1 numbers"),
    ],
)
def test_label_that_is_not_what_it_says_is_named(tmp_path, value, problem):
    path = write(tmp_path, frame(info=value))
    with pytest.raises(BadRecordError, match=rf"^{path}: record 0 {problem}"):
        read(path, columns={"energy": "REF"}, units={"energy": "eV"})


def test_forces_of_the_wrong_shape_are_named(tmp_path):
    path = write(tmp_path, frame(["H 0 0 0 1"], "species:S:1:pos:R:3:F:R:1"))
    with pytest.raises(
        BadRecordError,
        match=r"record 0 has forces of shape \(1,\) for 1 atoms: give shape \(1, 3\)",
    ):
        read(path, columns={"forces": "F"}, units={"forces": "eV/A"})


@pytest.mark.parametrize(
    ("forces", "problem"),
    [
        ([[1.0, 2.0, 3.0]], r"of shape \(1, 3\) for 2 atoms: give shape \(2, 3\)"),
        ([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], r"of shape \(3, 2\) for 2 atoms"),
        ([1.0, 2.0], r"of shape \(2,\) for 2 atoms"),
        ([[1.0, 2.0, 3.0], [4.0]], r"'\[\[1.0, 2.0, 3.0\], \[4.0\]\]', which is not a number"),
        ("x" * 1000, "'x{40}', which is not a number"),
    ],
)
def test_forces_in_info_of_the_wrong_shape_are_named(tmp_path, forces, problem):
    """They were dropped without a word, whatever their shape."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1]], info={"energy": 1.0, "dft_forces": forces})
    ase.io.write(tmp_path / "mine.traj", atoms)
    with pytest.raises(BadRecordError, match=f"record 0 has forces {problem}"):
        read(tmp_path / "mine.traj", **IN_INFO)


def test_a_label_of_the_structure_that_each_atom_has_is_named(tmp_path):
    """It was dropped without a word. Six atoms have as many numbers as a stress."""
    atoms = Atoms("H6", np.arange(18).reshape(6, 3), cell=[30, 30, 30], pbc=True)
    atoms.arrays["S"] = np.arange(6.0)
    ase.io.write(tmp_path / "mine.extxyz", atoms)
    problem = r"has stress of shape \(6,\), of each of its atoms, in 'S': name a column for the"
    with pytest.raises(BadRecordError, match=problem):
        read(tmp_path / "mine.extxyz", columns={"stress": "S"}, units={"stress": "eV/A^3"})


def test_a_mask_that_each_atom_has_is_named(tmp_path):
    """The label was kept without a word."""
    path = write(
        tmp_path,
        frame(["H 0 0 0 T", "H 0 0 1 T"], "species:S:1:pos:R:3:bad:L:1", info="energy=1"),
    )
    with pytest.raises(BadRecordError, match=r"has 2 values of 'bad' \(masks.energy\): give one"):
        read(path, masks={"energy": "bad"})


UNPARSABLE = {
    "short": frame(["H 0 0"]),
    "element": frame(["Uue 0 0 0"]),
    "bytes": frame(["H 0 \udcff 0"]),
}


@pytest.mark.parametrize("records_per_part", [1, 2, 100])
@pytest.mark.parametrize("bad", UNPARSABLE.values(), ids=UNPARSABLE)
def test_records_that_cannot_be_parsed_are_set_aside_and_no_other(tmp_path, bad, records_per_part):
    path = tmp_path / "mine.extxyz"
    path.write_bytes((bad + GOOD + GOOD + bad + bad + GOOD + bad).encode(errors="surrogateescape"))
    config = SourceConfig(level_of_theory="PBE")
    found = [
        record
        for part in list_parts(str(path), config, records_per_part)
        for record in read_part(part, config)
    ]
    assert [isinstance(record, BadRecordError) for record in found] == [
        True,
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    assert [record.record for record in found if isinstance(record, BadRecordError)] == [0, 3, 4, 6]
    assert all(record.energy == 1 for record in found if not isinstance(record, BadRecordError))


def test_cut_off_file_gives_its_whole_records_first(tmp_path):
    path = write(tmp_path, GOOD + GOOD + GOOD[:-8])
    records = read_structures(path, SourceConfig(level_of_theory="PBE"))
    assert [next(records).energy, next(records).energy] == [1, 1]
    with pytest.raises(SourceError, match=rf"^{path}: record 2 cannot be read"):
        next(records)


def test_cut_off_gzip_is_named(tmp_path):
    path = tmp_path / "mine.extxyz.gz"
    path.write_bytes(gzip.compress(GOOD.encode())[:-10])
    with pytest.raises(SourceError, match=rf"^{path}: record 0 cannot be read \(EOFError"):
        read(path)


def test_records_after_a_blank_line_are_not_lost_in_silence(tmp_path):
    path = write(tmp_path, GOOD + "\n" + GOOD)
    with pytest.raises(
        SourceError, match=rf"^{path}: record 0 is followed by a blank line.*remove the blank line"
    ):
        read(path)
    assert len(read(write(tmp_path, GOOD + "\n\n"))) == 1  # at the end it does no harm


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file_is_named(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(
        SourceError, match=rf"^{path}: contains no structures: write the file again"
    ):
        read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.extxyz: no such file"):
        read(tmp_path / "nowhere.extxyz")


def test_unstated_level_of_theory_is_named(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(
        BadRecordError, match=rf"^{path}: record 0 states no level of theory: add level_of_theory="
    ):
        read(path, level_of_theory=None)


def test_unknown_label_column_is_named_with_those_that_exist(tmp_path):
    path = write(tmp_path, frame(info="REF_energy=1 colour=red"))
    config = {"columns": {"energy": "REF_enrgy"}, "units": {"energy": "eV"}}
    with pytest.raises(
        SourceError, match=rf"^{path}: no column 'REF_enrgy' for columns.energy; .*REF_energy"
    ):
        read(path, **config)


def test_unknown_text_column_is_named_with_those_that_exist(tmp_path):
    path = write(tmp_path, frame(info="run=1"))
    with pytest.raises(
        BadRecordError, match=rf"^{path}: record 0 has no column 'rnu' \(columns.group\).* run"
    ):
        read(path, columns={"group": "rnu"})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["columns.energy=E"], r"columns\.energy=E has no unit: add units\.energy="),
        (
            ["columns.energy=E", "units.energy=erg"],
            r"units\.energy='erg' is not known: use one of eV, meV, Hartree",
        ),
        (
            ["columns.stress=S", "units.stress=eV/A"],
            r"units\.stress='eV/A' is not known: use one of eV/A\^3, GPa",
        ),
        (["columns.enrgy=E"], r"columns\.enrgy is not a field: use one of energy, forces, group"),
        (
            ["units.energy=Hartree"],
            r"units\.energy=Hartree belongs to no column: add columns\.energy=",
        ),
        (
            ["units.energies=eV"],
            r"units\.energies is not a label: use one of energy, forces, stress",
        ),
        (
            ["level=PBE"],
            r"unknown key 'level' \(known here: columns, .*, level_of_theory, .*, units",
        ),
        (["columns=E"], "columns: Input should be a valid dictionary"),
        (["valid_share=1.5"], "valid_share: Input should be less than 1"),
        (["columns=[E"], r"'columns=\[E': the value is not valid YAML"),
        (["columns"], "'columns': write a setting as key=value"),
    ],
)
def test_config_mistake_names_key_and_remedy(words, problem):
    with pytest.raises(SettingsError, match=rf"^{problem}") as error:
        load_settings(ConvertConfig, None, words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("columns: [", "not valid YAML"),
        ("- a\n- b", "a recipe is a mapping"),
        ("colums: {}", "unknown key 'colums'"),
    ],
)
def test_bad_recipe_names_its_file(tmp_path, text, problem):
    path = write(tmp_path, text, "recipe.yaml")
    with pytest.raises(SettingsError, match=rf"^{path}: {problem}"):
        load_settings(ConvertConfig, path)


def test_missing_recipe_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml: no such recipe file"):
        load_settings(ConvertConfig, tmp_path / "none.yaml")


def test_override_lies_over_the_recipe(tmp_path):
    path = write(
        tmp_path,
        "valid_share: 0.2\ncolumns: {energy: E, forces: F}\nunits: {energy: eV, forces: eV/A}",
    )
    config = load_settings(ConvertConfig, path, ["valid_share=0.3", "columns.energy=REF"])
    assert (config.valid_share, config.columns) == (0.3, {"energy": "REF", "forces": "F"})


@pytest.mark.parametrize(
    "text",
    [
        "+9999999999\nenergy=1\nH 0 0 0\n",
        "1\nProperties=species:S:1:pos:R:+900000000 energy=1\nH 0 0 0\n",
    ],
)
def test_limits_hold_whatever_reads_the_frames(tmp_path, text):
    """The template of a simulation, and the probe set of a model that somebody else made."""
    path = write(tmp_path, text)
    before = time.process_time()
    with pytest.raises(SourceError, match=rf"^{path}: cannot be read as a structure"):
        read_one(path)
    with pytest.raises(BadRecordError, match="announces"):
        list(frames_of_text(text.encode()))
    assert time.process_time() - before < 5


def test_last_structure_of_a_file_is_read_as_one(tmp_path):
    path = write(tmp_path, frame() + frame(["O 1 2 3"], info='stress="1 2 3 4 5 6"'))
    atoms = read_one(path)
    assert atoms.get_chemical_formula() == "O"
    assert atoms.positions.tolist() == [[1, 2, 3]]
