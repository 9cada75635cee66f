"""ase.db, ASE-LMDB, folders and globs: what is read, in which parts, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import sqlite3
import time
from contextlib import closing, contextmanager

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.sources.ase_files import read_one
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.sources.read import (
    list_parts,
    read_part,
    read_structures,
    source_fingerprint,
)
from evenfield.data_pipelines.sources.source_format import Part
from evenfield.data_pipelines.structure import BadRecordError


aselmdb = pytest.importorskip("ase_db_backends.aselmdb")
EMT = SourceConfig(level_of_theory="EMT")


@pytest.fixture(params=["mine.db", "mine.aselmdb"])
def database(request, alloys, tmp_path):
    """Frames with labels in the calculator, key-value pairs, and forces in another unit in data."""
    path = tmp_path / request.param
    handle = ase.db.connect(path) if path.suffix == ".db" else aselmdb.LMDBDatabase(path)
    for k, atoms in enumerate(alloys):
        other = {"F": atoms.get_forces() * 1000}
        handle.write(
            atoms,
            key_value_pairs={"run": f"r{k % 3}", "E": atoms.get_potential_energy() * 1000},
            data=other,
        )
    del handle
    return path


def test_labels_come_from_the_rows_calculator(database, alloys):
    read = list(read_structures(database, EMT))
    assert len(read) == len(alloys)
    for s, atoms in zip(read, alloys, strict=True):
        assert s.energy == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(s.forces, atoms.get_forces(), atol=1e-12)
        np.testing.assert_allclose(s.to_atoms().get_stress(), atoms.get_stress(), atol=1e-12)
        np.testing.assert_allclose(s.positions, atoms.positions)
        assert s.pbc.all() and s.atomic_numbers.tolist() == atoms.numbers.tolist()
    assert [s.structure_id for s in read[:2]] == [
        "mine-1",
        "mine-2",
    ]  # as `ase db mine.db 1` finds it


def test_key_value_pairs_and_data_are_columns(database, alloys):
    config = SourceConfig(
        columns={"energy": "E", "forces": "F", "group": "run"},
        units={"energy": "meV", "forces": "meV/A"},
        filters={"run": ["r0", "r2"]},
        level_of_theory="EMT",
    )
    read = list(read_structures(database, config))
    wanted = [a for k, a in enumerate(alloys) if k % 3 != 1]
    assert [s.group for s in read] == ["r0", "r2"] * 8
    assert [s.energy for s in read] == pytest.approx([a.get_potential_energy() for a in wanted])
    np.testing.assert_allclose(read[0].forces, wanted[0].get_forces(), atol=1e-12)


def test_parts_are_ranges_of_ids_and_make_the_whole(database):
    handle = (
        ase.db.connect(database) if database.suffix == ".db" else aselmdb.LMDBDatabase(database)
    )
    handle.delete([2, 3, 24])
    del handle
    parts = list_parts(str(database), EMT, records_per_part=8)
    assert [(p.first, p.last) for p in parts] == [(1, 11), (11, 19), (19, 24)]
    pieces = [
        s.structure_id
        for part in map(pickle.loads, map(pickle.dumps, parts))
        for s in read_part(part, EMT)
    ]
    assert pieces == [s.structure_id for s in read_structures(database, EMT)]
    assert len(pieces) == 21


def test_raw_forces_of_fixed_atoms_are_kept(alloys, tmp_path):
    atoms = alloys[0].copy()
    atoms.calc = alloys[0].calc
    atoms.set_constraint(FixAtoms([0, 1]))
    ase.db.connect(tmp_path / "mine.db").write(atoms)
    (s,) = read_structures(tmp_path / "mine.db", EMT)
    np.testing.assert_allclose(s.forces, alloys[0].get_forces(), atol=1e-12)


@pytest.mark.parametrize("name", ["mine.db", "mine.aselmdb"])
def test_bad_row_is_rejected_by_its_id(name, alloys, tmp_path):
    path = tmp_path / name
    handle = ase.db.connect(path) if path.suffix == ".db" else aselmdb.LMDBDatabase(path)
    handle.write(alloys[0])
    handle.write(Atoms("H2", [[0, 0, 0], [0, 0, 0.1]]))
    del handle
    good, bad = read_part(list_parts(str(path), EMT)[0], EMT)
    assert good.structure_id == "mine-1"
    assert isinstance(bad, BadRecordError) and (bad.file, bad.record) == (str(path), 2)
    assert "at 0.100 A, closer than 0.3 A: check the length unit" in bad.reason


@pytest.mark.parametrize("name", ["mine.db", "mine.aselmdb"])
def test_corrupt_database_is_named(name, tmp_path, capfd):
    (tmp_path / name).write_bytes(b"not a database, whatever its name says" * 300)
    with pytest.raises(
        SourceError,
        match=rf"{name}: cannot be read as a database \(.*\): fetch or write it again",
    ):
        list_parts(str(tmp_path / name), EMT)
    assert capfd.readouterr().err == ""  # no destructor complains


def test_foreign_sqlite_file_is_named_and_left_alone(tmp_path):
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(SourceError, match=r"cannot be read as a database .*no such table: systems"):
        list_parts(str(path), EMT)
    assert path.read_bytes() == before


def test_torn_row_is_named(alloys, tmp_path):
    path = tmp_path / "mine.db"
    for atoms in alloys[:2]:
        ase.db.connect(path).write(atoms)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET positions = x'00' WHERE id = 2")
    with pytest.raises(
        BadRecordError, match=rf"^{path}: record 2 cannot be read \(.*\): write it again"
    ):
        list(read_structures(path, EMT))


def test_columns_of_geometry_are_refused_where_ase_reads_it(database):
    config = SourceConfig(columns={"positions": "pos"}, level_of_theory="EMT")
    with pytest.raises(
        SourceError,
        match=r"columns\.positions is for Parquet and hub data sets.*: remove the key",
    ):
        list(read_structures(database, config))


def test_filter_by_a_column_that_is_not_there(database):
    config = SourceConfig(filters={"colour": "red"}, level_of_theory="EMT")
    with pytest.raises(
        BadRecordError,
        match=r"record 1 has no column 'colour' \(filters.colour\); it has: E, F, run",
    ):
        list(read_structures(database, config))


def test_a_database_in_json_says_what_one_in_sqlite_says(alloys, tmp_path):
    config = SourceConfig(columns={"level_of_theory": "functional"}, unstated_level="PBE")
    found = {}
    for name in ("some.db", "some.json"):
        with ase.db.connect(tmp_path / name) as database:
            for index, atoms in enumerate(alloys):
                level = "SCAN" if index % 2 else "PBE"
                pairs = {"functional": level, "split": "test" if index > 7 else "train"}
                database.write(atoms, key_value_pairs=pairs, data={"run": f"r{index}"})
        found[name] = list(read_structures(tmp_path / name, config))
    for one, other in zip(found["some.db"], found["some.json"], strict=True):
        assert (one.level_of_theory, one.split) == (other.level_of_theory, other.split)
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.forces, other.forces)
    assert {structure.level_of_theory for structure in found["some.json"]} == {"PBE", "SCAN"}
    assert {structure.split for structure in found["some.json"]} == {"train", "test"}


def test_plain_lists_in_json_are_read_as_ase_reads_them(tmp_path):
    row = {"numbers": [29, 29], "positions": [[0.0, 0.0, 0.0], [2.5, 0.0, 0.0]], "energy": -1.0}
    path = tmp_path / "lists.json"
    path.write_text(json.dumps({"1": row, "ids": [1], "nextid": 2}))
    (structure,) = read_structures(path, EMT)
    (atoms,) = ase.io.read(path, ":")
    assert structure.atomic_numbers.tolist() == atoms.numbers.tolist()
    assert structure.positions == pytest.approx(atoms.positions)
    assert structure.energy == -1.0


def test_structures_in_json_need_no_pairs(alloys, tmp_path):
    ase.io.write(tmp_path / "some.json", alloys[:3])
    structures = list(read_structures(tmp_path / "some.json", EMT))
    energies = [atoms.get_potential_energy() for atoms in alloys[:3]]
    assert [structure.energy for structure in structures] == pytest.approx(energies)


def test_a_packed_database_is_refused(alloys, tmp_path):
    ase.io.write(tmp_path / "some.json", alloys[:3])
    packed = gzip.compress((tmp_path / "some.json").read_bytes())
    (tmp_path / "some.json.gz").write_bytes(packed)
    with pytest.raises(SourceError, match=r"some\.json\.gz.* an ASE database .*ends in \.json"):
        list(read_structures(tmp_path / "some.json.gz", EMT))


CIF = """data_alloy
_cell_length_a 3.7
_cell_length_b 3.7
_cell_length_c 3.7
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


@pytest.mark.parametrize(
    ("sites", "shares"),
    [
        ("Cu1 Cu 0 0 0 0.5\nAu1 Au 0 0 0 0.5\n", "Cu 0.5, Au 0.5"),
        ("Cu1 Cu 0 0 0 0.75\n", "Cu 0.75"),
    ],
)
def test_sites_that_are_occupied_in_part_are_refused(sites, shares, tmp_path):
    path = tmp_path / "alloy.cif"
    path.write_text(CIF + sites)
    match = rf"not fully occupied \({shares}\).*whole atoms"
    with pytest.raises(SourceError, match=rf"alloy\.cif.*{match}"):
        read_one(path)
    with pytest.raises(BadRecordError, match=match):
        list(read_structures(path, EMT))


@pytest.mark.parametrize("share", ["", " 1.0"])
@pytest.mark.parametrize("place", ["0 0 0", "0.5 0.5 0"])
def test_two_elements_at_one_place_are_refused(share, place, tmp_path):
    """ASE keeps one of them; the second place is an image of the first."""
    path = tmp_path / "alloy.cif"
    head = CIF if share else CIF.replace("_atom_site_occupancy\n", "")
    path.write_text(f"{head}Cu1 Cu 0 0 0{share}\nAu1 Au {place}{share}\n")
    match = "has (Au and Cu|Cu and Au) at one place"
    with pytest.raises(SourceError, match=rf"alloy\.cif.*{match}"):
        read_one(path)
    with pytest.raises(SourceError, match=match):
        list(read_structures(path, EMT))


def test_sites_that_are_full_are_read(tmp_path):
    path = tmp_path / "copper.cif"
    path.write_text(CIF + "Cu1 Cu 0 0 0 1.0\n")
    assert str(read_one(path).symbols) == "Cu4"


def test_alternative_places_of_a_protein_are_refused(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.set_array("occupancy", np.array([1.0, 0.0, 1.0, 1.0]))
    ase.io.write(tmp_path / "a.pdb", atoms)
    assert len(read_one(tmp_path / "a.pdb")) == 4
    atoms.arrays["occupancy"][2] = 0.5
    ase.io.write(tmp_path / "b.pdb", atoms)
    with pytest.raises(SourceError, match=r"1 sites that are not fully occupied \(Cu 0.5\)"):
        read_one(tmp_path / "b.pdb")


def test_the_last_row_of_a_database_is_read_as_one_structure(tmp_path):
    for name in ("rows.db", "rows.json"):
        with ase.db.connect(tmp_path / name) as database:
            database.write(bulk("Cu"))
            database.write(bulk("Au", cubic=True))
        assert str(read_one(tmp_path / name).symbols) == "Au4"


# --- several files


@pytest.fixture
def folder(alloys, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    ase.io.write(source / "a.extxyz", alloys[:10])
    ase.io.write(source / "sub" / "b.traj", alloys[10:])
    (source / "README.md").write_text("not data")
    (source / ".hidden.xyz").write_text("not data either")
    return source


def test_folder_and_glob_and_file_url(folder, alloys):
    parts = list_parts(str(folder), EMT)
    first = Part(str(folder / "a.extxyz"), 0, 10, id_prefix="a")
    second = Part(str(folder / "sub" / "b.traj"), id_prefix="sub/b")
    assert parts == [first, second]
    energies = [s.energy for s in read_structures(folder, EMT)]
    assert energies == pytest.approx([a.get_potential_energy() for a in alloys])
    assert [s.energy for s in read_structures(f"file://{folder}", EMT)] == energies
    assert [s.energy for s in read_structures(f"file://{folder}/a.extxyz", EMT)] == energies[:10]
    assert [s.energy for s in read_structures(f"{folder}/*.extxyz", EMT)] == energies[:10]


def test_conversion_of_a_folder_is_finished_until_a_file_changes(folder, alloys, tmp_path):
    config = ConvertConfig(level_of_theory="EMT", split_by="structure")
    info = convert(folder, tmp_path / "out", config)
    assert sum(info["num_structures"].values()) == len(alloys)
    before = source_fingerprint(str(folder), config)
    assert info["source"]["sha256"] == before
    written = (tmp_path / "out" / "census.json").stat().st_mtime_ns
    convert(folder, tmp_path / "out", config)
    assert (tmp_path / "out" / "census.json").stat().st_mtime_ns == written
    ase.io.write(folder / "a.extxyz", alloys[:9])
    assert source_fingerprint(str(folder), config) != before


def test_length_unit_scales_positions_and_cell(folder, alloys):
    config = SourceConfig(level_of_theory="EMT", length_unit="nm")
    s = next(read_structures(folder, config))
    np.testing.assert_allclose(s.positions, 10 * alloys[0].positions, rtol=1e-6)
    np.testing.assert_allclose(s.cell, 10 * alloys[0].cell.array, rtol=1e-6)


@pytest.mark.parametrize("name", ["nothing", "nothing/*.xyz"])
def test_folder_without_data_is_named(tmp_path, name):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        SourceError, match=r"nothing.*: contains no file that ends in \.parquet, .*: name another"
    ):
        list_parts(str(tmp_path / name), EMT)


def test_a_folder_of_runs_says_the_pattern_that_reads_them(tmp_path, alloys):
    """Outputs of other programs have one name in every run."""
    for number in range(2):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        ase.io.write(tmp_path / "runs" / str(number) / "POSCAR", alloys[number], format="vasp")
    with pytest.raises(SourceError, match=r"name a pattern: '.*runs/\*\*/POSCAR'"):
        list_parts(str(tmp_path / "runs"), EMT)
    assert len(list_parts(f"{tmp_path}/runs/**/POSCAR", EMT)) == 2


@contextmanager
def nobody():
    """As a user without rights: the superuser may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["mine.extxyz", "mine.db", "mine.parquet"])
def test_forbidden_file_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"secret")
    path.chmod(0)
    for above in (tmp_path, *list(tmp_path.parents)[:2]):  # made for their owner alone
        above.chmod(0o755)
    with (
        nobody(),
        pytest.raises(
            SourceError, match=rf"^{path}: cannot be read \(Permission denied\): ask its owner"
        ),
    ):
        list(read_structures(path, EMT))


def test_forbidden_folder_is_named(folder):
    folder.chmod(0)
    try:
        with (
            nobody(),
            pytest.raises(
                SourceError, match=rf"^{folder}.*: cannot be read \(Permission denied\): ask"
            ),
        ):
            list_parts(str(folder / "a.extxyz"), EMT)
    finally:
        folder.chmod(0o755)


# what a database can compute instead of storing it
ENDLESS = (
    "WITH RECURSIVE more(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM more) SELECT id FROM more"
)
PROGRAMS = {
    "endless systems": f"DROP TABLE systems; CREATE VIEW systems AS {ENDLESS}",
    "endless keys": f"DROP TABLE keys; CREATE VIEW keys AS {ENDLESS}",
    "generated column": "ALTER TABLE systems ADD COLUMN big AS (hex(zeroblob(100000000)))",
    "virtual table": "CREATE VIRTUAL TABLE more USING fts5(text)",
    "trigger": "CREATE TRIGGER more AFTER INSERT ON systems BEGIN SELECT 1; END",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_database_that_computes_its_content_is_refused(tmp_path, program):
    path = tmp_path / "mine.db"
    with ase.db.connect(path) as database:
        database.write(Atoms("H"))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(program)
    before = time.process_time()
    with pytest.raises(SourceError, match=rf"^{path}: has a .* that computes what it shows"):
        list(read_structures(path, EMT))
    assert time.process_time() - before < 5
