"""What one data set holds out and another one trains on is counted, with an example."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evenfield.data_pipelines.checks.leaks import leaks_among
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.convert.near_duplicates import fingerprint
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.fingerprints import FINGERPRINTS, read_fingerprints
from evenfield.data_pipelines.store.shards import BrokenDataSetError, read_info, write_info
from evenfield.data_pipelines.structure import SPLITS


@pytest.fixture
def write(train_structures, tmp_path):
    """A function that writes some of the training structures, in a split for each."""

    def write_parts(name: str, splits: dict[str, range], prefix: str = "") -> Path:
        structures = []
        for split, numbers in splits.items():
            for number in numbers:
                one = train_structures[number]
                new_id = f"{prefix}{number}"
                structures.append(replace(one, split=split, structure_id=new_id))
        out = tmp_path / name
        write_data_set(structures, out, {"file": name, "sha256": name}, ConvertConfig())
        return out

    return write_parts


def test_fingerprints_are_those_of_the_structures_in_file_order(write):
    folder = write("one", {"train": range(8), "valid": range(8, 11), "test": range(11, 16)})
    found = read_fingerprints(folder, read_info(folder))
    for split in SPLITS:
        # as converted: positions are rounded in the shards, which may move a near copy by a step
        expected = [fingerprint(one) for one in iter_structures(folder, split)]
        assert len(found[split]) == len(expected)
        assert np.mean(found[split] == expected) > 0.9


def test_test_structures_of_one_set_in_the_training_of_another(write):
    one = write("one", {"train": range(10), "test": range(10, 14)}, prefix="a")
    two = write("two", {"train": range(11, 20), "valid": range(3, 5), "test": range(30, 33)})
    notes = leaks_among([one, two])
    assert len(notes) == 2
    by_start = {note[:4]: note for note in notes}
    assert by_start["3 of"].startswith(
        f"3 of 4 test structures of {one} have near copies in the training split of {two}, for "
        "example a11, "
    )
    assert by_start["2 of"].startswith(
        f"2 of 2 valid structures of {two} have near copies in the training split of {one}, for "
        "example 3, "
    )
    assert all("convert their sources into one data set" in note for note in notes)


def test_apart_and_alone_say_nothing(write):
    one = write("one", {"train": range(10), "test": range(10, 14)})
    two = write("two", {"train": range(14, 20), "test": range(20, 24)})
    assert leaks_among([one, two]) == []
    assert leaks_among([one]) == []


def test_a_copy_that_was_turned_and_shifted_is_found(write, train_structures, tmp_path):
    one = write("one", {"train": range(6), "test": range(6, 8)})
    copies = []
    for number, structure in enumerate(train_structures[6:8]):
        turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        copies.append(
            replace(
                structure,
                structure_id=f"turned-{number}",
                positions=(structure.positions + 0.3) @ turn.T,
                cell=structure.cell @ turn.T,
                labels={"energy": structure.energy},
                split="train",
            )
        )
    out = tmp_path / "turned"
    write_data_set(copies, out, {"file": "t", "sha256": "t"}, ConvertConfig())
    (note,) = leaks_among([one, out])
    assert note.startswith("2 of 2 test structures")


def test_a_data_set_without_fingerprints_is_to_be_converted_again(write):
    one = write("one", {"train": range(4)})
    two = write("two", {"train": range(4, 8)})
    (two / FINGERPRINTS).unlink()
    info = json.loads((two / "dataset_info.json").read_text())
    del info["fingerprints_sha256"]
    write_info(two, info)
    with pytest.raises(BrokenDataSetError, match="lacks checksums") as told:
        leaks_among([one, two])
    assert told.value.file == str(two / "dataset_info.json")
    assert told.value.remedy == "convert the source again with --overwrite"


@pytest.mark.parametrize("change", ["flip", "cut", "long"])
def test_changed_fingerprints_are_not_compared(write, change):
    one = write("one", {"train": range(4)})
    path = one / FINGERPRINTS
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[-3] ^= 4
    elif change == "cut":
        del data[-8:]
    else:
        data += bytes(1 << 20)
    path.write_bytes(data)
    with pytest.raises(BrokenDataSetError, match=r"fingerprints\.npy: was changed since"):
        read_fingerprints(one, read_info(one))


def test_missing_fingerprints_are_damage(write):
    one = write("one", {"train": range(4)})
    (one / FINGERPRINTS).unlink()
    with pytest.raises(BrokenDataSetError, match=r"fingerprints\.npy: is missing"):
        read_fingerprints(one, read_info(one))
