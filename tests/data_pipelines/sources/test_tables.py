"""Parquet on disk and behind URLs: column types, parts, missing labels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.sources.read import (
    list_parts,
    read_part,
    read_structures,
    sample_parts,
    source_fingerprint,
)
from evenfield.data_pipelines.sources.source_format import Part
from evenfield.data_pipelines.structure import BadRecordError, Structure


COLUMNS = {"energy": "E", "forces": "F", "stress": "S"}
UNITS = {"energy": "eV", "forces": "eV/A", "stress": "eV/A^3"}
CONFIG = SourceConfig(columns=COLUMNS, units=UNITS, level_of_theory="PBE")
WATER = [[0.0, 0, 0], [0.0, 0.76, 0.59], [0.0, -0.76, 0.59]]


def rows(count: int = 1, **changes) -> dict:
    """`count` water molecules in a box, each with its index as energy; other columns as given."""
    box = np.eye(3) * 9
    columns = {
        "atomic_numbers": [[8, 1, 1]] * count,
        "positions": [WATER] * count,
        "cell": [box.tolist()] * count,
        "pbc": [[True] * 3] * count,
        "E": [float(index) for index in range(count)],
        # three numbers for each of three atoms: any will do as forces
        "F": [WATER] * count,
        "S": [[1.0, 2, 3, 4, 5, 6]] * count,
    }
    columns |= changes
    # None leaves a column out
    return {name: values for name, values in columns.items() if values is not None}


def write(path: Path, columns: dict, **options) -> Path:
    table = pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def read_one(tmp_path, config=CONFIG, **changes) -> Structure:
    path = write(tmp_path / "mine.parquet", rows(**changes))
    (structure,) = read_structures(path, config)
    return structure


# --- shapes


@pytest.mark.parametrize(("column", "field"), [("positions", "positions"), ("F", "forces")])
def test_coordinates_of_all_atoms_in_three_lists_are_refused(tmp_path, column, field):
    """They have as many numbers as three for each atom, and were read across atoms."""
    two_atoms = {
        "atomic_numbers": [[8, 1]],
        "positions": [[[0.0, 0, 0], [0, 0.76, 0.59]]],
        "F": [[[0.1, 0, 0], [-0.1, 0, 0]]],
    }
    transposed = two_atoms | {column: [[[0.1, -0.1], [0, 0.9], [0, 0.1]]]}
    with pytest.raises(BadRecordError, match=f"has {field} in lists of 2 numbers"):
        read_one(tmp_path, **transposed)
    assert len(read_one(tmp_path, **two_atoms)) == 2


def test_one_atom_may_have_its_numbers_in_any_lists(tmp_path):
    one_atom = {"atomic_numbers": [[8]], "positions": [[[1.0], [2.0], [3.0]]], "F": [[[1, 2, 3]]]}
    assert read_one(tmp_path, **one_atom).positions.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    "changes", [{"E": [True]}, {"S": [[True] * 6]}, {"F": [[[True, False, True]] * 3]}]
)
def test_truth_values_are_no_labels(tmp_path, changes):
    """numpy reads True as 1.0, and it was an energy of 1 eV."""
    with pytest.raises(BadRecordError, match=r"not a number|truth values"):
        read_one(tmp_path, **changes)


# --- column types


FLAT = np.array(WATER).ravel().tolist()


@pytest.mark.parametrize(
    "positions",
    [
        pa.array([FLAT], pa.list_(pa.float32())),
        pa.array([FLAT], pa.large_list(pa.float64())),
        pa.array([FLAT], pa.list_(pa.float64(), 9)),
        pa.array([WATER], pa.list_(pa.list_(pa.float32(), 3))),
        pa.array([WATER], pa.large_list(pa.large_list(pa.float64()))),
        pa.array([[WATER]], pa.list_(pa.list_(pa.list_(pa.float64())))),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([WATER])),
    ],
    ids=lambda array: str(array.type),
)
def test_nested_flat_fixed_and_extension_lists(tmp_path, positions):
    structure = read_one(tmp_path, positions=positions)
    # some of the columns are float32
    np.testing.assert_allclose(structure.positions, WATER, atol=1e-7)
    assert structure.positions.dtype == np.float64


@pytest.mark.parametrize(
    "numbers",
    [
        pa.array([["O", "H", "H"]]),
        pa.array([["O", "H", "H"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        pa.array([[8, 1, 1]], pa.list_(pa.uint8())),
        pa.array([[8, 1, 1]], pa.list_(pa.float32())),
    ],
    ids=lambda array: str(array.type)[:20],
)
def test_elements_as_symbols_or_numbers(tmp_path, numbers):
    structure = read_one(tmp_path, atomic_numbers=numbers)
    assert structure.atomic_numbers.tolist() == [8, 1, 1]
    assert structure.atomic_numbers.dtype == np.int64


def test_voigt_flat_and_square_stress_are_one(tmp_path):
    square = [[1.0, 6, 5], [6, 2, 4], [5, 4, 3]]
    # Voigt's order is xx, yy, zz, yz, xz, xy
    voigt = [1.0, 2, 3, 4, 5, 6]
    flat = np.ravel(square)
    for stress in (voigt, square, flat.tolist()):
        structure = read_one(tmp_path, S=[stress])
        assert structure.stress.tolist() == square


def test_cell_and_pbc_have_defaults(tmp_path):
    crystal = read_one(tmp_path, pbc=None)
    assert crystal.pbc.all()
    alone = read_one(tmp_path, cell=None, pbc=None)
    assert not alone.pbc.any() and not alone.cell.any()

    flags = pa.array([[1, 1, 0]], pa.list_(pa.int8()))
    stated = read_one(tmp_path, pbc=flags)
    assert stated.pbc.tolist() == [True, True, False]
    # periodic where it has a vector
    two_vectors = [[[3.0, 0, 0], [0, 3, 0], [0, 0, 0]]]
    slab = read_one(tmp_path, cell=two_vectors, pbc=None)
    assert slab.pbc.tolist() == [True, True, False]


VARIABLE_LISTS = pa.list_(pa.list_(pa.float64()))
# in Arrow, a null row of a fixed-size list has values all the same
FIXED_LISTS = pa.list_(pa.list_(pa.float64(), 3), 3)


@pytest.mark.parametrize("kind", [VARIABLE_LISTS, FIXED_LISTS])
def test_null_labels_are_missing_and_shift_nothing(tmp_path, kind):
    doubled = 2 * np.array(WATER)
    forces = pa.array([None, WATER, None, doubled.tolist()], kind)
    stress = pa.array([[1.0] * 6, None, [None] * 6, [2.0] * 6])
    energies = [0, None, 2, 3]
    path = write(tmp_path / "a.parquet", rows(4, F=forces, S=stress, E=energies))

    read = list(read_structures(path, CONFIG))
    assert [structure.forces is None for structure in read] == [True, False, True, False]
    np.testing.assert_allclose(read[3].forces, doubled)
    assert [structure.stress is None for structure in read] == [False, True, True, False]
    assert read[3].stress[0, 0] == 2
    assert [structure.energy for structure in read] == energies


def test_masks_filters_and_text_columns(tmp_path):
    methods = ["a", "b", "a", "a"]
    steps = [1.0, 1, 2, 1]
    is_bad = [False, False, False, True]
    path = write(tmp_path / "a.parquet", rows(4, method=methods, step=steps, bad=is_bad))
    config = SourceConfig(
        columns=COLUMNS | {"level_of_theory": "method", "structure_id": "E"},
        units=UNITS,
        masks={"stress": "bad"},
        filters={"method": "a", "step": [1, 3]},
    )

    # the second has another method, the third another step; the mask takes a label of the last
    first, last = read_structures(path, config)
    assert first.level_of_theory == last.level_of_theory == "a"
    assert (first.structure_id, last.structure_id) == ("0.0", "3.0")
    assert first.stress is not None
    assert last.stress is None


def test_files_named_as_shards_state_their_split(tmp_path):
    for name in ("train-00000-of-00001", "val-00000-of-00001", "other"):
        write(tmp_path / f"{name}.parquet", rows())
    assert [s.split for s in read_structures(tmp_path, CONFIG)] == [None, "train", "valid"]
    for folder in ("validation", "test", "mine"):  # as in the hub's own Parquet copies
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0000.parquet", rows())
    read = {s.structure_id: s.split for s in read_structures(f"{tmp_path}/*/*.parquet", CONFIG)}
    assert read == {"validation-0000-0": "valid", "test-0000-0": "test", "mine-0000-0": None}


def test_sample_is_spread_and_opens_no_more_files_than_it_needs(tmp_path):
    for k in range(9):
        path = write(tmp_path / f"{k}.parquet", rows(4), row_group_size=1)
    path.with_name("5.parquet").write_bytes(b"broken")
    names = [Path(part.name).name for part in sample_parts(str(tmp_path), CONFIG, 3)]
    assert names == ["0.parquet", "4.parquet", "8.parquet"]
    with pytest.raises(SourceError, match=r"5\.parquet: not a whole Parquet file"):
        list_parts(str(tmp_path), CONFIG)


def test_our_own_shards_need_no_columns(data_set, train_structures):
    read = list(read_structures(f"{data_set}/train-*.parquet", SourceConfig()))
    assert [s.energy for s in read] == [s.energy for s in train_structures]
    assert {s.level_of_theory for s in read} == {s.level_of_theory for s in train_structures}


# --- parts


def test_parts_are_runs_of_row_groups_and_make_the_whole(tmp_path):
    path = write(tmp_path / "mine.parquet", rows(25), row_group_size=4)
    parts = list_parts(str(path), CONFIG, records_per_part=10)
    name = str(path)
    assert [(part.first, part.last) for part in parts] == [(0, 8), (8, 16), (16, 25)]
    assert {part.name for part in parts} == {name}

    energies = []
    for part in parts:
        energies += [structure.energy for structure in read_part(part, CONFIG)]
    assert energies == list(range(25))
    across_groups = read_part(Part(name, 6, 11), CONFIG)
    assert [structure.energy for structure in across_groups] == [6, 7, 8, 9, 10]
    # ids count from the beginning of the file
    first = next(read_part(parts[2], CONFIG))
    assert first.structure_id == "mine-16"


def test_bad_rows_are_rejected_by_their_index(tmp_path):
    columns = rows(5)
    columns["F"] = [WATER, WATER[:2], WATER, WATER, WATER]
    whole = ["O", "H", "H"]
    columns["atomic_numbers"] = [whole, whole, whole, ["O", "H", "Hx"], ["O", "H"]]
    path = write(tmp_path / "mine.parquet", columns, row_group_size=2)

    bad = {}
    energies = []
    for part in list_parts(str(path), CONFIG, 2):
        for item in read_part(part, CONFIG):
            if isinstance(item, BadRecordError):
                bad[item.record] = item.reason
            else:
                energies.append(item.energy)
    assert energies == [0, 2]
    assert bad[1].startswith("has 6 forces instead of 9 numbers")
    assert bad[3] == "has element 'Hx', which is not a symbol: correct or remove it"
    assert bad[4].startswith("has 9 positions instead of 6 numbers: check columns.positions")


def test_half_atomic_number_is_refused(tmp_path):
    with pytest.raises(BadRecordError, match=r"record 0 has atomic numbers that are not whole"):
        read_one(tmp_path, atomic_numbers=[[8.5, 1, 1]])


# --- what is refused as a whole


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"columns": COLUMNS | {"energy": "energy"}, "units": UNITS},
            r"'energy' for columns\.energy",
        ),
        (
            {"columns": COLUMNS | {"positions": "pos"}, "units": UNITS},
            r"'pos' for columns\.positions",
        ),
        (
            {"columns": COLUMNS | {"positions": "E.x"}, "units": UNITS},
            r"'E\.x' for columns\.positions",
        ),
        (
            {"columns": COLUMNS, "units": UNITS, "masks": {"stress": "bad"}},
            r"'bad' for masks\.stress",
        ),
        (
            {"columns": COLUMNS, "units": UNITS, "filters": {"method": "a"}},
            r"'method' for filters\.method",
        ),
    ],
)
def test_missing_column_is_named_with_those_there(tmp_path, config, problem):
    path = write(tmp_path / "mine.parquet", rows())
    there = "atomic_numbers, positions, cell, pbc, E, F, S"
    with pytest.raises(SourceError, match=rf"^{path}: no column {problem}; the file has: {there}$"):
        list(read_structures(path, SourceConfig(level_of_theory="PBE", **config)))


def test_labels_are_not_guessed(tmp_path):
    path = write(tmp_path / "mine.parquet", rows())
    with pytest.raises(
        SourceError,
        match=r"the settings name no column of a label; .*: name one .* columns\.energy=",
    ):
        list(read_structures(path, SourceConfig(level_of_theory="PBE")))


@pytest.mark.parametrize("content", [b"", b"PAR1 but not much of it"])
def test_file_that_is_no_parquet(tmp_path, content):
    path = tmp_path / "mine.parquet"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"^{path}: not a whole Parquet file"):
        list_parts(str(path), CONFIG)


def test_truncated_parquet(tmp_path):
    path = write(tmp_path / "mine.parquet", rows(100), row_group_size=10)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SourceError, match=rf"^{path}: not a whole Parquet file"):
        list(read_structures(path, CONFIG))


def test_damaged_page_is_named_with_its_row(tmp_path):
    path = write(tmp_path / "mine.parquet", rows(100), row_group_size=100, compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(
        SourceError, match=rf"^{path}: cannot be read after row 0 .*: fetch or write it again"
    ):
        list(read_structures(path, CONFIG))


def test_fingerprint_is_of_bytes(tmp_path):
    path = write(tmp_path / "mine.parquet", rows(3))
    before = source_fingerprint(str(path), CONFIG)
    path.rename(tmp_path / "other.parquet")
    assert source_fingerprint(str(tmp_path / "other.parquet"), CONFIG) == before
    write(path, rows(4))
    assert source_fingerprint(str(path), CONFIG) != before
