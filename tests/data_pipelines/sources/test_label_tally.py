"""Labels are counted, and columns that look like labels and are not read are named."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.cli import main
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.convert.finish import ConversionError
from evenfield.data_pipelines.sources.label_names import INSTEAD, look_alike
from evenfield.data_pipelines.sources.label_tally import from_json, label_report


def crystal(index: int = 0, pbc: bool | tuple[bool, ...] = True, **results) -> Atoms:
    """Two copper atoms that are never twice at the same place."""
    positions = [[0, 0, 0], [1.8, 1.8, 0.01 * index]]
    atoms = Atoms("Cu2", positions, cell=[3.6, 3.6, 3.6], pbc=pbc)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def converted(source: Path, out: Path, **settings) -> dict:
    """The content of dataset_info.json."""
    config = ConvertConfig(
        level_of_theory="EMT", split_by="structure", valid_share=0, test_share=0, **settings
    )
    return convert(source, out, config, workers=1)


FORCES = np.array([[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])


@pytest.mark.parametrize(
    ("column", "label", "unit"),
    [
        ("TotEnergy", "energy", "eV"),
        ("REF_energy", "energy", "eV"),
        ("mace_mp_energy", "energy", "eV"),
        ("free_energy", "energy", "eV"),
        ("Etot", "energy", "eV"),
        ("force", "forces", "eV/A"),
        ("dft-forces", "forces", "eV/A"),
        ("energy_gradient", "forces", "-eV/A"),
        ("virials", "stress", "-eV"),
        ("REF_virial", "stress", "-eV"),
        ("DFTStress", "stress", "eV/A^3"),
        ("E", "energy", "eV"),
        ("F", "forces", "eV/A"),
        ("U0", "energy", "Hartree"),
        ("e_wo_entrp", "energy", "eV"),
        ("energy_Ha", "energy", "Hartree"),
        ("energy_meV", "energy", "meV"),
        ("forces_Ha_Bohr", "forces", "Hartree/Bohr"),
        ("gradient_hartree_bohr", "forces", "-Hartree/Bohr"),
        ("grad", "forces", "-eV/A"),
        ("hellmann_feynman", "forces", "eV/A"),
        ("forces_kcal_mol", "forces", "kcal/mol/A"),
        ("stress_kbar", "stress", "kbar"),
        ("stress_GPa", "stress", "GPa"),
        ("virial_Ry", "stress", "-Ry"),
        ("E_dft", "energy", "eV"),
        ("dft_E", "energy", "eV"),
        ("E_vasp", "energy", "eV"),
        ("F_dft", "forces", "eV/A"),
        ("F_ref", "forces", "eV/A"),
        ("Fdft", "forces", "eV/A"),
        ("f", "forces", "eV/A"),
        ("frcs", "forces", "eV/A"),
        ("S_dft", "stress", "eV/A^3"),
        ("sigma", "stress", "eV/A^3"),
        ("vir", "stress", "-eV"),
        ("pressure_tensor", "stress", "-eV/A^3"),
    ],
)
def test_names_that_look_like_a_label(column, label, unit):
    seen = look_alike(column)
    assert (seen.label, seen.unit) == (label, unit)


@pytest.mark.parametrize(
    "column",
    ["e_above_hull", "energy_error", "band_energy", "forces_weight", "config_type", "Fe", "ref"],
)
def test_names_that_do_not(column):
    assert look_alike(column) is None


@pytest.mark.parametrize(
    ("column", "label"),
    [("fx", "forces"), ("force_y", "forces"), ("Fz", "forces"), ("stress_xy", "stress")],
)
def test_names_that_look_like_a_component(column, label):
    seen = look_alike(column)
    assert (seen.label, seen.form) == (label, "component")


def test_components_in_columns_of_their_own_are_named(tmp_path):
    """They were dropped without a word."""
    frames = [crystal(index, energy=float(index)) for index in range(3)]
    for frame in frames:
        for place, axis in enumerate("xyz"):
            frame.arrays[f"f{axis}"] = FORCES[:, place]
        frame.info["stress_xx"] = 0.1
    ase.io.write(tmp_path / "mine.extxyz", frames)
    info = converted(tmp_path / "mine.extxyz", tmp_path / "out")
    report = label_report(from_json(info["labels"]))
    for column in ("fx", "fy", "fz", "stress_xx"):
        line = next(line for line in report if f"'{column}'" in line)
        assert line.endswith("which 3 of them lack; " + INSTEAD["component"] + " would be read")


@pytest.mark.parametrize(
    ("column", "value", "form"),
    [
        ("energy_per_atom", -3.5, "per atom"),
        ("cohesive_energy", -3.5, "relative"),
        ("formation_energy", 0.1, "relative"),
        ("energies", [-3.5, -3.6], "per atom"),
        ("stresses", np.ones((2, 6)), "per atom"),
    ],
)
@pytest.mark.parametrize("ending", ["extxyz", "parquet"])
def test_what_is_nearly_a_label_is_named_with_what_would_be_read(
    column, value, form, ending, tmp_path
):
    """A column of energies of atoms, say, was dropped without a word."""
    if (column, ending) == ("stresses", "parquet"):
        pytest.skip("the type of its column does not tell that it belongs to atoms")
    atoms = crystal(forces=FORCES)
    if ending == "extxyz":
        if np.ndim(value):
            atoms.arrays[column] = np.array(value)
        else:
            atoms.info[column] = value
        ase.io.write(tmp_path / "mine.extxyz", atoms)
        settings = {}
    else:
        row = {
            "atomic_numbers": [29, 29],
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": [True, True, True],
            "forces": FORCES.tolist(),
            column: np.asarray(value).tolist(),
        }
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "mine.parquet")
        settings = {"columns": {"forces": "forces"}, "units": {"forces": "eV/A"}}
    info = converted(tmp_path / f"mine.{ending}", tmp_path / "out", **settings)
    (line,) = [line for line in label_report(from_json(info["labels"])) if "not read" in line]
    assert f"'{column}" in line
    assert line.endswith(f"which 1 of them lack; {INSTEAD[form]} would be read")


@pytest.mark.parametrize("ending", ["extxyz", "traj", "db"])
def test_forces_among_the_values_of_the_structure_are_named(ending, tmp_path):
    """They were dropped without a word, and naming them read nothing."""
    frames = [crystal(index, energy=float(index)) for index in range(3)]
    path = tmp_path / f"mine.{ending}"
    if ending == "db":
        with ase.db.connect(path) as database:
            for frame in frames:
                database.write(frame, data={"dft_forces": FORCES})
    else:
        for frame in frames:
            frame.info["dft_forces"] = FORCES.tolist()
        ase.io.write(path, frames)
    info = converted(path, tmp_path / "out")
    (line,) = [line for line in label_report(from_json(info["labels"])) if "not read" in line]
    setting = "columns.forces=dft_forces units.forces=eV/A"
    assert line == (
        f"not read: 'dft_forces' of 3 structures looks like forces, which 3 of them lack; {setting}"
        " would read it, if that is its unit"
    )

    settings = load_settings(ConvertConfig, None, setting.split())
    named = converted(path, tmp_path / "named", columns=settings.columns, units=settings.units)
    assert from_json(named["labels"]).kept["EMT"] == {"energy": 3, "forces": 3}


def test_a_letter_is_a_label_by_its_shape_alone(tmp_path):
    frames = [crystal(index, energy=1.0) for index in range(3)]
    for atoms in frames:
        atoms.arrays["F_dft"] = FORCES
        # a width, a spin and flags
        atoms.info |= {"sigma": 0.05, "S": 1.5}
        atoms.arrays["f"] = np.array([1.0, 0.0])
    ase.io.write(tmp_path / "frames.extxyz", frames)
    info = converted(tmp_path / "frames.extxyz", tmp_path / "out", trust_units=True)
    lines = label_report(from_json(info["labels"]))
    named = [line for line in lines if "not read" in line]
    assert len(named) == 1
    assert "'F_dft' of 3 structures looks like forces, which 3 of them lack" in named[0]


def test_lists_that_are_no_labels_are_not_named(tmp_path):
    frame = crystal(energy=1.0)
    frame.info |= {"scf_energies": [[1.0], [1.0, 2.0]], "force_constants": [1.0, 2.0]}
    ase.io.write(tmp_path / "mine.traj", frame)
    info = converted(tmp_path / "mine.traj", tmp_path / "out")
    assert from_json(info["labels"]).unread == {}


def test_forces_alone_are_in_the_remedy_of_a_source_without_labels(tmp_path):
    """The remedy spoke of energies only, with forces at hand."""
    frame = crystal()
    frame.info["dft_forces"] = FORCES.tolist()
    ase.io.write(tmp_path / "mine.extxyz", frame)
    problem = r"perhaps columns\.forces=dft_forces units\.forces=eV/A$"
    with pytest.raises(ConversionError, match=problem):
        converted(tmp_path / "mine.extxyz", tmp_path / "out")


def test_a_source_where_nothing_looks_like_a_label_gets_an_example_of_each_usual_one(tmp_path):
    ase.io.write(tmp_path / "mine.extxyz", crystal())
    with pytest.raises(ConversionError, match=r"columns\.energy=E .*columns\.forces=F units"):
        converted(tmp_path / "mine.extxyz", tmp_path / "out")


def test_energies_of_atoms_next_to_the_total_energy_are_no_news(tmp_path):
    atoms = crystal(energy=-7.1, forces=FORCES)
    atoms.info["energy_per_atom"] = -3.55
    atoms.arrays["energies"] = np.array([-3.5, -3.6])
    ase.io.write(tmp_path / "mine.extxyz", atoms)
    info = converted(tmp_path / "mine.extxyz", tmp_path / "out")
    assert not [line for line in label_report(from_json(info["labels"])) if "not read" in line]


def test_a_folder_of_three_namings_is_read_whole_by_the_setting_that_is_advised(tmp_path):
    """The advice read two of three, and the next one would have lost the second again."""
    source = tmp_path / "mixed"
    source.mkdir()
    for place, name in enumerate(["energy", "dft_energy", "E"]):
        frames = [crystal(10 * place + index) for index in range(2)]
        for index, frame in enumerate(frames):
            if name == "energy":
                frame.calc = SinglePointCalculator(frame, energy=float(index))
            else:
                frame.info[name] = float(index)
        ase.io.write(source / f"{name}.extxyz", frames)

    def advice(**settings) -> str:
        info = converted(source, tmp_path / f"out{len(settings)}", **settings)
        report = label_report(from_json(info["labels"]))
        return next((line for line in report if "not read" in line), "")

    assert "columns.energy=[energy,E,dft_energy] units.energy=eV would read it" in advice()
    two = {"columns": {"energy": ["energy", "dft_energy"]}, "units": {"energy": "eV"}}
    assert "columns.energy=[energy,dft_energy,E] units.energy=eV would" in advice(**two)
    three = {
        "columns": {"energy": ["energy", "dft_energy", "E"]},
        "units": {"energy": "eV"},
        "trust_units": True,
    }
    assert advice(**three) == ""


def test_levels_that_a_setting_replaces_are_named(tmp_path):
    """Two levels were trained under one name, without a word."""
    frames = [crystal(index, energy=float(index)) for index in range(4)]
    for frame, level in zip(frames, ["EMT", "B", "C", "C"], strict=True):
        frame.info["level_of_theory"] = level
    ase.io.write(tmp_path / "mine.extxyz", frames)
    info = converted(tmp_path / "mine.extxyz", tmp_path / "out")
    report = "\n".join(label_report(from_json(info["labels"])))
    assert "level_of_theory replaces what 3 structures state ('B', 'C')" in report


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path, monkeypatch, capsys):
    source = tmp_path / "source"
    source.mkdir()
    ase.io.write(source / "a.extxyz", [crystal(index, energy=1.0 + index) for index in range(4)])
    shutil.copy(source / "a.extxyz", source / "B.EXTXYZ")
    (source / "v.json").write_text("{}")
    (source / ".hidden").write_text("")
    words = ["evenfield", "data", "convert", str(source), str(tmp_path / "out")]
    words += ["level_of_theory=EMT", "split_by=structure", "--trust-units", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    # in large letters it is the same format
    assert "8 read" in " ".join(said.split())
    assert "not read: one other file of the folder (v.json)" in said


def test_components_alone_give_a_remedy_that_can_be_followed(tmp_path):
    frame = crystal(0)
    for place, axis in enumerate("xyz"):
        frame.arrays[f"f{axis}"] = FORCES[:, place]
    ase.io.write(tmp_path / "mine.extxyz", frame)
    with pytest.raises(ConversionError) as told:
        converted(tmp_path / "mine.extxyz", tmp_path / "out")
    assert told.value.remedy.startswith("join fx, fy, fz to one column")


def test_labels_that_only_later_frames_have_are_counted_and_named(tmp_path):
    frames = [crystal(0)] + [crystal(index, energy=float(index)) for index in range(1, 5)]
    frames[0].info["TotEnergy"] = 0.0
    for frame in frames[3:]:
        frame.arrays["force"] = FORCES
        frame.info["virial"] = np.eye(3)
    ase.io.write(tmp_path / "mine.extxyz", frames)

    info = converted(tmp_path / "mine.extxyz", tmp_path / "out")
    tally = from_json(info["labels"])
    assert tally.structures == {"EMT": 5}
    assert tally.kept == {"EMT": {"energy": 4}}
    assert tally.unread == tally.unread_only == {"TotEnergy": 1, "force": 2, "virial": 2}

    report = label_report(tally, "source.")
    expected = "labels of 5 structures at EMT: energy 4, forces 0, stress 0; 1 have none of them"
    assert report[0] == expected
    settings = [
        "source.columns.energy=[energy,TotEnergy] source.units.energy=eV",
        "source.columns.forces=force source.units.forces=eV/A",
        "source.columns.stress=virial source.units.stress=-eV",
    ]
    for setting in settings:
        assert any(setting in line for line in report[1:])


@pytest.mark.parametrize("name", ["mine.json", "mine.db"])
def test_labels_in_nested_mappings_are_named_and_read(tmp_path, name):
    with ase.db.connect(tmp_path / name) as database:
        for index in range(5):
            atoms = crystal(index, energy=1.0)
            database.write(atoms, data={"dft": {"forces": FORCES, "note": {"by": "hand"}}})
    info = converted(tmp_path / name, tmp_path / "before")
    tally = from_json(info["labels"])
    assert tally.unread == {"dft.forces": 5}
    setting = "columns.forces=dft.forces units.forces=eV/A"
    assert any(setting in line for line in label_report(tally))

    changed = {"columns": {"forces": "dft.forces"}, "units": {"forces": "eV/A"}}
    after = from_json(converted(tmp_path / name, tmp_path / "after", **changed)["labels"])
    assert after.kept == {"EMT": {"energy": 5, "forces": 5}}


def test_structures_without_any_label_are_counted(tmp_path):
    frames = [crystal(index, energy=1.0) for index in range(5)]
    for frame in frames[3:]:
        # a name that says nothing
        frame.info["e_dft"] = 1.0
        frame.calc = None
    ase.io.write(tmp_path / "mine.extxyz", frames)
    tally = from_json(converted(tmp_path / "mine.extxyz", tmp_path / "out")["labels"])
    assert tally.unlabelled == {"EMT": 2}
    assert label_report(tally)[0].endswith("energy 3, forces 0, stress 0; 2 have none of them")


def test_settings_of_the_report_read_what_it_names(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    ase.io.write(folder / "a.extxyz", crystal(0, energy=1.0, forces=FORCES))
    other = crystal(1)
    other.info |= {"REF_energy": 2.0, "virials": -46.656 * np.eye(3)}
    other.arrays["REF_forces"] = FORCES
    ase.io.write(folder / "b.extxyz", other)

    info = converted(folder, tmp_path / "before")
    report = "\n".join(label_report(from_json(info["labels"])))
    words = [word for word in report.split() if word.startswith(("columns.", "units."))]
    assert len(words) == 6
    settings = load_settings(ConvertConfig, None, words)
    changed = {"columns": settings.columns, "units": settings.units}
    after = from_json(converted(folder, tmp_path / "after", **changed)["labels"])
    assert after.kept == {"EMT": {"energy": 2, "forces": 2, "stress": 1}}
    assert after.unread == {}


def test_masked_labels_and_stresses_of_slabs_are_counted(tmp_path):
    stress = np.full(6, 0.01)
    bulk = crystal(0, energy=1.0, stress=stress)
    slab = crystal(1, pbc=(True, True, False), energy=2.0, stress=stress)
    masked = crystal(2, energy=3.0, stress=stress)
    masked.info["bad"] = True
    ase.io.write(tmp_path / "mine.extxyz", [bulk, slab, masked])

    info = converted(tmp_path / "mine.extxyz", tmp_path / "out", masks={"stress": "bad"})
    (line,) = label_report(from_json(info["labels"]))
    assert line.endswith(
        "energy 3, forces 0, stress 2 (and 1 masked) "
        "(1 of them not periodic in three directions, unused)"
    )


def test_free_energy_is_named_only_where_it_is_the_only_one(tmp_path):
    both = crystal(0, energy=1.0, free_energy=1.1)
    alone = crystal(1, free_energy=2.0)
    ase.io.write(tmp_path / "mine.extxyz", [both, alone])
    tally = from_json(converted(tmp_path / "mine.extxyz", tmp_path / "out")["labels"])
    assert tally.unread == {"free_energy": 1}


def test_columns_of_a_table_and_of_a_database_are_named(tmp_path):
    columns = {
        "atomic_numbers": [[29, 29]],
        "positions": [crystal().positions.tolist()],
        "E": [1.0],
        "dft_forces": [FORCES.tolist()],
        # of each atom, and so no label
        "energies": [[0.5, 0.5]],
        "energy_note": ["none"],
    }
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    named = {"columns": {"energy": "E"}, "units": {"energy": "eV"}}
    of_table = converted(tmp_path / "mine.parquet", tmp_path / "table", **named)
    assert from_json(of_table["labels"]).unread == {"dft_forces": 1}

    with ase.db.connect(tmp_path / "mine.db") as database:
        atoms = crystal(0, forces=FORCES)
        database.write(atoms, key_value_pairs={"total_energy": 1.0})
    of_database = converted(tmp_path / "mine.db", tmp_path / "database")
    assert from_json(of_database["labels"]).unread == {"total_energy": 1}


def test_data_set_without_any_label_is_refused(tmp_path):
    frame = crystal()
    frame.info["REF_energy"] = 1.0
    ase.io.write(tmp_path / "mine.extxyz", frame)
    with pytest.raises(
        ConversionError,
        match=r"none of its 1 structures has a label that was read: .* columns\.energy=REF_energy",
    ):
        converted(tmp_path / "mine.extxyz", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def test_stresses_of_slabs_alone_are_no_labels(tmp_path):
    slab = crystal(0, pbc=(True, True, False), stress=np.full(6, 0.01))
    ase.io.write(tmp_path / "mine.extxyz", slab)
    with pytest.raises(ConversionError, match="has a label that was read"):
        converted(tmp_path / "mine.extxyz", tmp_path / "out")


def test_elements_that_are_left_out_are_not_counted(tmp_path):
    other = crystal(1, energy=1.0)
    other.symbols = ["Au", "Au"]
    ase.io.write(tmp_path / "mine.extxyz", [crystal(0, energy=1.0), other])
    info = converted(tmp_path / "mine.extxyz", tmp_path / "out", without_elements=["Au"])
    assert from_json(info["labels"]).structures == {"EMT": 1}


def test_command_prints_counts_and_columns(tmp_path, monkeypatch, capsys):
    frame = crystal(0, energy=1.0)
    frame.arrays["force"] = FORCES
    ase.io.write(tmp_path / "mine.extxyz", frame)
    words = ["data", "convert", tmp_path / "mine.extxyz", tmp_path / "out", "level_of_theory=EMT"]
    monkeypatch.setattr(sys, "argv", ["evenfield", *map(str, words), "valid_share=0"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert "labels of 1 structures at EMT: energy 1, forces 0, stress 0" in printed
    assert "not read: 'force' of 1 structures looks like forces, which 1 of them lack" in printed
