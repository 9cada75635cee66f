"""Small files that stand for gigabytes: each format refuses them before the memory is taken."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import time
import tracemalloc
import zlib
from contextlib import closing

import ase.db
import ase.io
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase.build import bulk
from ase.io.ulm import Writer

from evenfield.core import memory
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.sources.ase_files import read_frames, read_one
from evenfield.data_pipelines.sources.cif import cif_frames
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.sources.read import list_parts, read_part, read_structures
from evenfield.data_pipelines.sources.xyz_frames import doubled_keys
from evenfield.data_pipelines.store.blocks import BlockReader
from evenfield.data_pipelines.store.shards import (
    ARROW_SCHEMA,
    BrokenDataSetError,
    scan_shard,
    to_table,
)
from evenfield.data_pipelines.structure import BadRecordError, Structure


aselmdb = pytest.importorskip("ase_db_backends.aselmdb")
needs_limits = pytest.mark.skipif(
    not memory.STATE.exists(), reason="this system does not tell the memory of a process"
)

SETTINGS = SourceConfig(level_of_theory="made")
TABLE = SourceConfig(level_of_theory="made", columns={"energy": "E"}, units={"energy": "eV"})
NUMBERS = 130_000_000
# ASE makes an array of that many numbers, and repeats the only one
ARRAY = {"__ndarray__": [[NUMBERS], "float64", [1]]}


def json_database(path):
    row = {"numbers": ARRAY, "positions": [[0, 0, 0]]}
    path.write_text(json.dumps({"1": row, "ids": [1], "nextid": 2}))


def trajectory(path):
    with closing(Writer(str(path), tag="ASE-Trajectory")) as writer:
        writer.write(version=1, ase_version="3", pbc=[True] * 3, cell=np.eye(3).tolist())
        writer.write("numbers", np.array([1]))
        writer.write("positions", np.zeros((1, 3)))
        writer.write(x=ARRAY)


def counts_of_poscar(path):
    path.write_text(f"H\n1\n9 0 0\n0 9 0\n0 0 9\nH\n{NUMBERS}\nDirect\n0 0 0\n")


def sqlite_database(path):
    with ase.db.connect(path) as database:
        database.write(bulk("Cu"))
    with closing(sqlite3.connect(path)) as connection, connection:
        text = json.dumps({"a": ARRAY})
        connection.execute("UPDATE systems SET key_value_pairs=?", (text,))


def change_lmdb(path, key, content):
    with closing(aselmdb.LMDBDatabase(path)) as database:
        database.write(bulk("Cu"))
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 26) as opened,
        opened.begin(write=True) as changes,
    ):
        changes.put(key, zlib.compress(content))


def row_of_lmdb(path):
    change_lmdb(path, b"1", json.dumps({"numbers": ARRAY}).encode())


def packed_row_of_lmdb(path):
    change_lmdb(path, b"1", b'{"a": "' + bytes(NUMBERS * 4) + b'"}')


def count_of_lmdb(path):
    change_lmdb(path, b"nextid", b"9000000000")


@needs_limits
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.json", json_database),
        ("a.traj", trajectory),
        ("POSCAR", counts_of_poscar),
        ("a.db", sqlite_database),
        ("a.aselmdb", row_of_lmdb),
        ("a.aselmdb", packed_row_of_lmdb),
        ("a.aselmdb", count_of_lmdb),
    ],
)
def test_a_small_file_gets_no_gigabyte(tmp_path, name, make):
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(EvenfieldError, match="far more memory than a file of its size"):
        list(read_structures(path, SETTINGS))


CIF_CELL = "".join(
    f"_cell_length_{axis} 40\n_cell_angle_{angle} 90\n"
    for axis, angle in (("a", "alpha"), ("b", "beta"), ("c", "gamma"))
)


def cif(num_sites: int, group: int = 1, operations: int = 0, occupancy: str = "") -> str:
    """Atoms at random places, in a space group by its number, with listed operations or none."""
    places = np.random.default_rng(0).random((num_sites, 3))
    text = f"data_one\n{CIF_CELL}_space_group_IT_number {group}\n"
    if operations:
        text += "loop_\n_space_group_symop_operation_xyz\n" + "'x, y, z'\n" * operations
    text += "loop_\n_atom_site_label\n"
    text += "".join(f"_atom_site_fract_{axis}\n" for axis in "xyz")
    text += "_atom_site_occupancy\n" if occupancy else ""
    for x, y, z in places:
        text += f"Cu {x:.5f} {y:.5f} {z:.5f} {occupancy}\n"
    return text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (cif(3000, 227), "has 3000 sites with 192 operations; up to 700 sites, and 60,000"),
        (cif(1500, 227), "has 1500 sites with 192 operations"),
        (cif(2500, 2), "has 2500 sites with 2 operations"),
        (cif(10, 1, operations=9000), "lists 9000 symmetry operations; a space group has at most"),
        (cif(2500).replace("\nCu", "\nCu 0 0 0\nCu", 2), "2502 sites with several sites at one"),
    ],
)
def test_a_cif_of_many_sites_and_operations_is_refused(tmp_path, text, problem):
    """3000 sites in a group of 192 operations, 98 kB, took ASE many minutes."""
    path = tmp_path / "mine.cif"
    path.write_text(text)
    before = time.process_time()
    remedy = "write the structure with all its atoms, as extended xyz or without symmetry"
    for reading in (read_one, read_frames, lambda path: list(read_structures(path, SETTINGS))):
        with pytest.raises(SourceError, match=f"{problem}.*{remedy}") as caught:
            reading(path)
        assert str(caught.value).startswith(str(path))
    assert time.process_time() - before < 10


def test_a_cif_of_many_atoms_without_symmetry_is_read(tmp_path):
    """ASE took a minute for 3000 of them."""
    path = tmp_path / "mine.cif"
    path.write_text(cif(6000))
    before = time.process_time()
    assert len(read_one(path)) == 6000
    assert time.process_time() - before < 5


@pytest.mark.parametrize("occupancy", ["", "1.0", "0.5"])
@pytest.mark.parametrize("group", [1, 62, 225])
def test_a_cif_is_what_ase_makes_of_it(tmp_path, group, occupancy):
    path = tmp_path / "mine.cif"
    # places outside of the cell, and on its border
    text = cif(20, group, occupancy=occupancy)
    path.write_text(text.replace("Cu 0.6", "Cu -1.6", 1) + f"Au 0 0 0 {occupancy}\n")
    expected = ase.io.read(path)
    found = next(iter(cif_frames(path)))
    assert found.symbols.get_chemical_formula("all") == expected.symbols.get_chemical_formula("all")
    assert found.positions == pytest.approx(expected.positions, abs=1e-9)
    assert found.cell.array == pytest.approx(expected.cell.array)
    assert found.pbc.all()
    assert found.info.get("occupancy") == expected.info.get("occupancy")


def test_the_last_structure_of_a_cif_is_read_as_one(tmp_path):
    path = tmp_path / "mine.cif"
    path.write_text(cif(3) + cif(4))
    assert len(read_one(path)) == 4
    assert [len(atoms) for atoms in read_frames(path)] == [3, 4]


MAGRES = "#$magres-abinitio-v1.0\n"
ATOMS = "[atoms]\nunits lattice Angstrom\nlattice 4 0 0 0 4 0 0 0 4\n"
ATOMS += "units atom Angstrom\natom Si Si 1 0 0 0\n[/atoms]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[atoms]\n" * 25_000, r"line 3: '\[atoms\]' where block 'atoms' has not ended"),
        ("<a>" * 60_000, "line 2: '<a>' where block 'a' has not ended"),
        ("[/atoms]\n" * 25_000, "where no block has begun"),
        ("[atoms]\n[/magres]\n" * 10_000, "where block 'atoms' has not ended"),
        (ATOMS + "[magres]\nunits ms ppm\n", "block 'magres' does not end"),
    ],
)
def test_a_magres_file_of_open_blocks_is_refused(tmp_path, text, problem):
    """ASE searched the rest of the file for each of them: 8 kB took it more than half a minute."""
    path = tmp_path / "mine.magres"
    path.write_text(MAGRES + text)
    before = time.process_time()
    for reading in (read_one, read_frames, lambda path: list(read_structures(path, SETTINGS))):
        with pytest.raises(SourceError, match=problem) as caught:
            reading(path)
        assert str(caught.value).startswith(str(path))
    assert time.process_time() - before < 5


def test_a_magres_file_is_read(tmp_path):
    path = tmp_path / "mine.magres"
    path.write_text(MAGRES + "<calculation>\ncalc_code CASTEP\n</calculation>\n" + ATOMS)
    assert read_one(path).get_chemical_formula() == "Si"
    assert len(read_frames(path)) == 1


def test_an_lmdb_file_has_as_many_rows_as_entries(tmp_path):
    path = tmp_path / "a.aselmdb"
    change_lmdb(path, b"nextid", b"100000")
    with pytest.raises(EvenfieldError, match="states 99,999 rows and has 2 entries"):
        list(read_structures(path, SETTINGS))


def one_long_structure():
    """A table of one structure with a hundred million equal atoms."""
    atoms = pa.array(np.ones(100_000_000, np.uint8))
    return pa.ListArray.from_arrays(pa.array([0, len(atoms)], pa.int32()), atoms)


def test_a_view_of_endless_rows_is_refused_as_one_structure_too(tmp_path):
    """Commands that take one structure do not go through a conversion."""
    path = tmp_path / "view.db"
    with ase.db.connect(path) as database:
        database.write(bulk("Cu"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE systems RENAME TO stored")
        connection.execute(
            "CREATE VIEW systems AS WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r)"
            " SELECT stored.* FROM stored, r"
        )
    began = time.monotonic()
    with pytest.raises(SourceError, match="has a view 'systems' that computes what it shows"):
        read_one(path)
    assert time.monotonic() - began < 5


def test_millions_of_frames_without_atoms_are_refused_at_the_first_thousand(tmp_path):
    path = tmp_path / "empty.extxyz.gz"
    path.write_bytes(gzip.compress(b"0\n\n" * 5_000_000))
    assert path.stat().st_size < 20_000
    began = time.monotonic()
    with pytest.raises(SourceError, match="has more than 1,000 records without atoms"):
        list(read_structures(path, SETTINGS))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("kind", ["no text of frames", "frames and then something else", "cut off"])
def test_a_long_text_that_is_no_sequence_of_frames_is_not_read_to_its_end(tmp_path, kind):
    """ASE took six times its size of memory to say what the first strange line says."""
    good = b"1\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n"
    junk = (b"x" * 1023 + b"\n") * 1020 * 40
    text = {
        "no text of frames": junk,
        "frames and then something else": good * 3 + junk,
        "cut off": good * 3 + b"900000\n" + junk,
    }[kind]
    path = tmp_path / "long.extxyz"
    path.write_bytes(text)
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"record [03] (does not begin|ends before)"):
        list(read_structures(path, SETTINGS))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.6 * len(text)


def test_a_negative_number_of_atoms_is_named(tmp_path):
    path = tmp_path / "negative.extxyz"
    good = "1\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n"
    path.write_text(good + "-5\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n")
    with pytest.raises(SourceError, match="announces -5 atoms"):
        list(read_structures(path, SETTINGS))


def test_blank_lines_at_the_end_of_a_long_text_are_nothing(tmp_path):
    path = tmp_path / "blank.extxyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n" * 3 + " \n\n" * 9_000_000)
    assert len(read_frames(path)) == 3


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_comment_of_escaped_quotes_takes_no_time(tmp_path, quote):
    began = time.monotonic()
    assert doubled_keys("x=" + f"{quote}\\" * 200_000) == []
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"numbers": [29], "positions": []}, r"has positions of shape \(0,\) for 1 atoms"),
        ({"numbers": [29], "positions": [[0, 0]]}, r"has positions of shape \(1, 2\) for 1 atoms"),
        ({"numbers": [[29]], "positions": [[0, 0, 0]]}, r"has atomic numbers of shape \(1, 1\)"),
        ({"numbers": ["Cu"], "positions": [[0, 0, 0]]}, "has atomic numbers of .* type <U2"),
        ({"numbers": [29], "positions": [["a", 0, 0]]}, "has positions that are no numbers"),
        ({"numbers": [29], "positions": [[0, 0, 0]], "cell": [1, 2]}, "has a cell of shape"),
    ],
)
def test_a_row_of_another_shape_is_one_bad_record(tmp_path, row, message):
    path = tmp_path / "rows.json"
    good = {"numbers": [29], "positions": [[0, 0, 0]]}
    path.write_text(json.dumps({"1": row, "2": good, "ids": [1, 2], "nextid": 3}))
    (part,) = list_parts(str(path), SETTINGS)
    bad, found = read_part(part, SETTINGS)
    assert isinstance(bad, BadRecordError)
    assert re.search(message, str(bad))
    assert isinstance(found, Structure)


def test_a_table_of_equal_values_is_refused_by_its_footer(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"atomic_numbers": one_long_structure(), "positions": [[0.0] * 3], "E": [1.0]}
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(EvenfieldError, match="row group 0 unpacks to 800,000,"):
        list(read_structures(path, TABLE))


def many_equal_rows(rows):
    """A table of structures of one atom, all alike."""
    starts = pa.array(np.arange(rows + 1, dtype=np.int32))
    numbers = pa.ListArray.from_arrays(starts, pa.array(np.ones(rows, np.uint8)))
    starts = pa.array(np.arange(rows + 1, dtype=np.int32) * 3)
    positions = pa.ListArray.from_arrays(starts, pa.array(np.zeros(3 * rows)))
    return pa.table({"atomic_numbers": numbers, "positions": positions, "E": np.ones(rows)})


def test_a_table_of_equal_rows_is_refused_by_their_number(tmp_path):
    path = tmp_path / "a.parquet"
    # each row group is small enough
    pq.write_table(many_equal_rows(50_000), path, compression="zstd", row_group_size=10_000)
    assert path.stat().st_size < 25_000
    with pytest.raises(EvenfieldError, match="has 50,000 rows in "):
        list(read_structures(path, TABLE))

    pq.write_table(many_equal_rows(600), path, compression="zstd")
    assert len(list(read_structures(path, TABLE))) == 600


@pytest.mark.parametrize("column", ["atomic_numbers", "positions", "F"])
@pytest.mark.parametrize("values", [[1.0, 1.0], [{"a": 1}, {"a": 1}]])
def test_a_column_of_a_wrong_type_is_refused_before_its_rows(tmp_path, monkeypatch, column, values):
    columns = {"atomic_numbers": [[1], [1]], "positions": [[0.0] * 3] * 2, "E": [1.0] * 2}
    columns["F"] = [[0.0] * 3] * 2
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns | {column: values}), path)
    settings = SourceConfig(
        level_of_theory="made",
        columns={"energy": "E", "forces": "F"},
        units={"energy": "eV", "forces": "eV/A"},
    )
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(EvenfieldError, match=f"column '{column}' has type .* must be lists"):
        list(read_structures(path, settings))


def table_with_ids(path, letters, rows=512):
    """All rows share one identifier, which is stored once."""
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), ["x" * letters])
    columns = {
        "atomic_numbers": [[1]] * rows,
        "positions": [[0.0] * 3] * rows,
        "E": [1.0] * rows,
        "group": ids,
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def test_a_text_that_all_rows_share_is_read_once(tmp_path):
    path = tmp_path / "a.parquet"
    table_with_ids(path, letters=4_000_000)
    with pytest.raises(EvenfieldError, match="text of 4,000,000 bytes in column 'group'"):
        list(read_structures(path, TABLE))

    # one that is long and allowed, read as a dictionary too
    table_with_ids(path, letters=99_999)
    structures = list(read_structures(path, TABLE))
    assert len(structures) == 512
    assert {len(structure.group) for structure in structures} == {99_999}


def test_a_shard_of_equal_values_is_refused(tmp_path):
    atoms = bulk("Cu")
    table = to_table([Structure.from_atoms(atoms, "made", "a", "g", energy=-3.0)])
    place = ARROW_SCHEMA.get_field_index("atomic_numbers")
    table = table.set_column(place, ARROW_SCHEMA.field(place), one_long_structure())
    path = tmp_path / "train-00000.parquet"
    pq.write_table(table, path, compression="zstd")
    with pytest.raises(BrokenDataSetError, match="unpacks to"):
        list(scan_shard(path))


def test_a_shard_of_equal_rows_is_refused(tmp_path):
    columns = [pa.nulls(50_000, field.type) for field in ARROW_SCHEMA]
    path = tmp_path / "train-00000.parquet"
    pq.write_table(pa.table(columns, schema=ARROW_SCHEMA), path, compression="zstd")
    with pytest.raises(BrokenDataSetError, match="has 50,000 rows in "):
        list(scan_shard(path))


def test_a_block_of_equal_values_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "train-00000.parquet"
    pq.write_table(pa.table({"atomic_numbers": one_long_structure()}), path, compression="zstd")
    monkeypatch.setattr(
        "evenfield.data_pipelines.store.blocks.shard_paths", lambda folder, split: [path]
    )
    with pytest.raises(BrokenDataSetError, match="unpacks to"):
        BlockReader(tmp_path, "train")


@pytest.mark.parametrize("column", ["structure_id", "group"])
def test_a_shard_with_one_endless_text_is_refused(tmp_path, column):
    # of equal letters, so that the file has some kB
    long = {"structure_id": "a", "group": "g"} | {column: "x" * 30_000_000}
    atoms = bulk("Cu")
    first = Structure.from_atoms(atoms, "made", long["structure_id"], long["group"], energy=-3.0)
    others = [Structure.from_atoms(atoms, "made", f"b{i}", "g", energy=-3.0) for i in range(50)]
    path = tmp_path / "train-00000.parquet"
    pq.write_table(to_table([first, *others]), path, compression="zstd")
    assert path.stat().st_size < 50_000
    with pytest.raises(BrokenDataSetError, match=f"has texts of .* of {column}"):
        list(scan_shard(path))
