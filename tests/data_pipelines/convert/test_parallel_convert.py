"""Conversion in parts: the same bytes for any number of processes, after kills, and by tasks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, graphene
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.spatial.transform import Rotation

from evenfield.core.destination import DestinationError
from evenfield.core.files import FileError
from evenfield.core.labels import LABELS
from evenfield.core.settings import SettingsError
from evenfield.data_pipelines.convert import convert as conversion
from evenfield.data_pipelines.convert import staging
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.convert.near_duplicates import fingerprint
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.sources.source_format import Part
from evenfield.data_pipelines.store import shards
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import BrokenDataSetError, read_info
from evenfield.data_pipelines.structure import BadRecordError, Structure, check_structure


CONFIG = ConvertConfig(columns={"level_of_theory": "level"})


@pytest.fixture(autouse=True)
def many_parts(monkeypatch) -> None:
    monkeypatch.setattr(conversion, "RECORDS_PER_PART", 20)
    monkeypatch.setattr(conversion, "SHARD_SIZE", 16)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_do_not_depend_on_workers_or_parts(emt_file, tmp_path, monkeypatch):
    convert(emt_file, tmp_path / "two", CONFIG, workers=2)
    convert(emt_file, tmp_path / "one", CONFIG, workers=1)
    monkeypatch.setattr(conversion, "RECORDS_PER_PART", 1000)
    convert(emt_file, tmp_path / "whole", CONFIG, workers=1)
    assert len(contents(tmp_path / "one")) > 8
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "whole")


def test_array_tasks_then_one_call_give_the_same(emt_file, tmp_path, monkeypatch):
    convert(emt_file, tmp_path / "fresh", CONFIG, workers=1)
    for k in (3, 1, 2):
        assert convert(emt_file, tmp_path / "out", CONFIG, workers=1, task=(k, 3)) is None
        with pytest.raises(BrokenDataSetError, match="not a converted data set"):
            read_info(tmp_path / "out")
    monkeypatch.setattr(
        conversion, "read_part", lambda *_: pytest.fail("a staged part was read again")
    )
    convert(emt_file, tmp_path / "out", CONFIG, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("task", [(0, 3), (4, 3), (1, 0)])
def test_task_outside_its_range_is_refused(emt_file, tmp_path, task):
    with pytest.raises(
        SettingsError, match=f"task={task[0]}/{task[1]}: the first number is one of 1"
    ):
        convert(emt_file, tmp_path / "out", CONFIG, task=task)


SLOW = """
import os, sys, time
from evenfield.data_pipelines.convert import convert as conversion
from evenfield.data_pipelines.convert import staging
from evenfield.data_pipelines.store import shards

conversion.RECORDS_PER_PART = 20
conversion.SHARD_SIZE = 16
for module, name in ((staging, "to_table"), (shards.pq, "write_table"), (os, "fsync")):
    def slow(*words, whole=getattr(module, name), **more):
        time.sleep(0.05)
        return whole(*words, **more)
    setattr(module, name, slow)
config = conversion.ConvertConfig(columns={"level_of_theory": "level"})
conversion.convert(sys.argv[1], sys.argv[2], config, workers=1)
"""


def test_kill_at_any_instant_leaves_no_half_file_and_the_next_call_goes_on(emt_file, tmp_path):
    convert(emt_file, tmp_path / "fresh", CONFIG, workers=1)
    out, seen = tmp_path / "out", set()

    def whole(folder: Path) -> list[Path]:
        """Files under final names, staged or in the new folder."""
        found = [*folder.glob("out/.parts/*/0*.parquet"), *folder.glob(".out.*.new/*.parquet")]
        return [path for path in found if not path.name.startswith(".")]

    for whole_files in (1, 3, 6, 8, 10):  # 6 staged parts, then shards
        command = [sys.executable, "-c", SLOW, str(emt_file), str(out)]
        with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            while process.poll() is None and len(list(whole(tmp_path))) < whole_files:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        for path in whole(tmp_path):
            shards.pq.read_table(path)
        parts = {path.name for path in out.glob(".parts/*/0*.parquet")}
        assert seen <= parts or (out / "dataset_info.json").exists()
        seen = parts
    assert seen
    convert(emt_file, out, CONFIG, workers=1)
    assert contents(out) == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def test_damaged_staged_part_is_made_again(emt_file, tmp_path):
    convert(emt_file, tmp_path / "fresh", CONFIG, workers=1)
    out = tmp_path / "out"
    convert(emt_file, out, CONFIG, workers=1, task=(1, 2))
    for count, path in enumerate(sorted(out.glob(".parts/*/0*.parquet"))):
        data = bytearray(path.read_bytes())
        data[len(data) * (count + 1) // 5] ^= 4
        path.write_bytes(data)
    convert(emt_file, out, CONFIG, workers=1)
    assert contents(out) == contents(tmp_path / "fresh")


def test_link_in_place_of_the_staged_parts_is_refused(emt_file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".parts").symlink_to(elsewhere)
    with pytest.raises(DestinationError, match="is a link"):
        convert(emt_file, tmp_path / "out", CONFIG, workers=1)
    assert not list(elsewhere.iterdir())


# --- what goes wrong outside


@pytest.mark.parametrize("where", ["staged", "shard"])
def test_full_disk_is_one_clear_error_and_the_next_call_goes_on(
    emt_file, tmp_path, monkeypatch, where
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    module, name = (staging.pq.ParquetWriter, "write_table") if where == "staged" else (os, "fsync")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(
            FileError, match=r"out: cannot be written \(No space left on device\): make room"
        ):
            convert(emt_file, tmp_path / "out", CONFIG, workers=1)
    assert not list((tmp_path / "out").rglob("*.parquet*"))
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    convert(emt_file, tmp_path / "out", CONFIG, workers=1)


def test_folder_that_cannot_be_written_is_named(emt_file, monkeypatch, tmp_path):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(
        FileError,
        match=r"out: cannot be written \(Permission denied\): make room or make it writable",
    ):
        convert(emt_file, tmp_path / "out", CONFIG, workers=1)


def test_source_that_may_not_be_read_is_named(emt_file, monkeypatch, tmp_path):
    whole = Path.open

    def denied(path, *words, **more):
        if path == emt_file:
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(path, *words, **more)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        SourceError, match=r"metals\.extxyz: cannot be read \(Permission denied\): ask its owner"
    ):
        convert(emt_file, tmp_path / "out", CONFIG)


def test_remote_that_goes_away_is_named_and_finished_parts_are_kept(
    emt_file, tmp_path, monkeypatch
):
    whole = conversion.read_part

    def cut_off(part: Part, config, count, **options):
        if part.first == 40:
            raise ConnectionError("connection reset by peer")
        return whole(part, config, count, **options)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "read_part", cut_off)
        with pytest.raises(
            FileError,
            match=r"metals\.extxyz: reading failed \(connection reset by peer\): run the same",
        ):
            convert(emt_file, tmp_path / "out", CONFIG, workers=1)
    assert len(list((tmp_path / "out" / ".parts").rglob("*.parquet"))) == 2
    convert(emt_file, tmp_path / "out", CONFIG, workers=1)


# --- records


def structure(name: str = "a", **fields) -> Structure:
    atoms = bulk("Cu", cubic=True)
    plain = Structure.from_atoms(atoms, "EMT", name, name, energy=-14.0)
    labels = {field: fields.pop(field) for field in list(fields) if field in LABELS}
    return replace(plain, **fields).with_labels(**labels)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"forces": np.full((4, 3), 1e6)},
            r"has forces of 1e\+06, beyond 10000 eV/A: check the unit or remove",
        ),
        ({"forces": np.full((4, 3), np.inf)}, "has NaN or infinite forces"),
        ({"energy": 1e9}, r"has energy of 1e\+09, beyond 4e\+07 eV"),
        ({"stress": np.full((3, 3), 1e6)}, r"has stress of 1e\+06, beyond 10000 eV/A\^3"),
        ({"positions": np.eye(4, 3) * 1e9}, r"has positions of 1e\+09, beyond 1000 A"),
        ({"cell": np.zeros((3, 3))}, "is periodic but its cell has no volume"),
        ({"cell": np.diag([9.0, 9.0, 0.0])}, "is periodic but its cell has no volume"),
        (
            {"cell": np.array([[9.0, 0, 0], [900, 9, 0], [0, 0, 9]]) * [1, 0.1, 1]},
            r"only 0\.009 A between opposite",
        ),
    ],
)
def test_insane_record_is_named(fields, problem):
    with pytest.raises(BadRecordError, match=problem):
        check_structure(structure(**fields))


def test_slab_may_leave_its_third_cell_vector_zero(tmp_path):
    atoms = graphene(size=(3, 3, 1))
    assert not atoms.cell[2].any() and atoms.pbc.tolist() == [True, True, False]
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    ase.io.write(tmp_path / "slab.extxyz", atoms)
    convert(
        tmp_path / "slab.extxyz",
        tmp_path / "out",
        ConvertConfig(level_of_theory="x", valid_share=0, test_share=0),
    )
    (s,) = iter_structures(tmp_path / "out", "train")
    assert len(s) == 18 and not s.cell[2].any()
    flat = replace(s, cell=s.cell * [[1], [0], [1]])
    with pytest.raises(BadRecordError, match="no volume"):
        check_structure(flat)


def with_ids(tmp_path: Path, *ids: str) -> Path:
    frames = [bulk("Cu", a=3.5 + 0.1 * k) for k in range(len(ids))]
    for atoms, name in zip(frames, ids, strict=True):
        atoms.info |= {"structure_id": name, "split": "train"}
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    ase.io.write(tmp_path / "ids.extxyz", frames)
    return tmp_path / "ids.extxyz"


def test_duplicate_ids_are_an_error_or_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "RECORDS_PER_PART", 2)
    path, out = with_ids(tmp_path, "a", "b", "c", "a", "d", "a"), tmp_path / "out"
    with pytest.raises(
        BadRecordError, match=rf"^{path}: record 3 has the id 'a' of record 0 of {path}"
    ):
        convert(path, out, ConvertConfig(level_of_theory="x"), workers=1)
    info = convert(path, out, ConvertConfig(level_of_theory="x", skip_bad=True), workers=1)
    assert info["records"] == {"read": 6, "kept": 4, "filtered": 0, "rejected": 2}
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [row["record"] for row in rows] == [3, 5]
    assert [s.structure_id for s in iter_structures(out, "train")] == ["a", "b", "c", "d"]


def test_label_that_appears_late_and_labels_that_never_do(tmp_path):
    frames = [bulk("Cu", a=3.5 + 0.001 * k) for k in range(150)]
    frames[-1].info["REF"] = -1.0
    ase.io.write(tmp_path / "late.extxyz", frames)
    config = ConvertConfig(
        level_of_theory="x", columns={"energy": "REF"}, units={"energy": "eV"}, split_by="structure"
    )
    convert(tmp_path / "late.extxyz", tmp_path / "out", config, workers=1)
    found = [
        s for split in ("train", "valid", "test") for s in iter_structures(tmp_path / "out", split)
    ]
    assert len(found) == 150 and [s.energy for s in found if s.energy is not None] == [-1.0]
    assert all(s.forces is None and s.stress is None for s in found)


def test_misspelt_mask_is_named(tmp_path):
    path = with_ids(tmp_path, "a")
    with pytest.raises(
        SourceError, match=r"no column 'typo' for masks\.stress; the file has: .*structure_id"
    ):
        convert(
            path, tmp_path / "out", ConvertConfig(level_of_theory="x", masks={"stress": "typo"})
        )


def test_read_is_kept_and_filtered_and_rejected(emt_file, tmp_path):
    config = ConvertConfig(columns={"level_of_theory": "level"}, without_elements=["Cu"])
    records = convert(emt_file, tmp_path / "out", config, workers=1)["records"]
    assert (
        records["read"] == 118 == records["kept"] + records["filtered"] and records["filtered"] > 10
    )


# --- near duplicates and held-out pairs


def test_turned_shifted_renumbered_and_repeated_copies_are_near_duplicates():
    rng = np.random.default_rng(0)
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)

    def of(atoms, energy: float) -> int:
        return fingerprint(Structure.from_atoms(atoms, "x", "a", "a", energy=energy))

    turned = atoms.copy()
    turn = Rotation.random(random_state=1).as_matrix()
    turned.set_cell(atoms.cell.array @ turn.T)
    turned.positions = atoms.positions @ turn.T + [1.0, -7.0, 3.0]
    assert (
        of(turned, -27.0)
        == of(atoms, -27.0)
        == of(atoms[rng.permutation(8)], -27.0)
        == of(atoms.repeat((2, 1, 1)), -54.0)
    )
    moved = atoms.copy()
    moved.positions[0] += 0.3
    assert (
        len(
            {
                of(atoms, -27.0),
                of(atoms, -26.9),
                of(moved, -27.0),
                of(atoms.repeat((2, 1, 1)), -27.0),
            }
        )
        == 4
    )


def test_near_duplicates_across_splits_are_counted_and_listed_but_kept(tmp_path):
    twins = [structure(f"t{k}", split=split) for k, split in enumerate(("train", "test", "train"))]
    other = structure("o", split="valid", energy=-10.0)
    info = write_data_set(
        [*twins, other], tmp_path / "out", {"file": "made", "sha256": ""}, ConvertConfig()
    )
    found = info["near_duplicates"]
    assert (found["groups"], found["structures"], found["groups_in_train_and_test"]) == (1, 3, 1)
    assert found["groups_in_train_and_valid"] == 0 and info["records"]["kept"] == 4
    (line,) = (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "num_structures": {"train": 2, "valid": 0, "test": 1},
        "structure_ids": ["t0", "t1", "t2"],
    }


def test_structures_with_a_held_out_pair_are_all_for_testing(emt_file, tmp_path):
    config = ConvertConfig(columns={"level_of_theory": "level"}, hold_out_pairs=[("Ni", "Al")])
    convert(emt_file, tmp_path / "out", config, workers=1)
    pair = {
        split: [
            {13, 28} <= set(s.elements.tolist()) for s in iter_structures(tmp_path / "out", split)
        ]
        for split in ("train", "valid", "test")
    }
    assert any(pair["test"]) and not any(pair["train"] + pair["valid"])
