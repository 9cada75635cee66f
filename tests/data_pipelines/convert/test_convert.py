"""Conversion: complete, repeatable, restartable, and split without leaks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from evenfield.core.destination import PAGE_MARK, DestinationError
from evenfield.core.figures.style import figure_png
from evenfield.data_pipelines.convert import convert as conversion
from evenfield.data_pipelines.convert import finish as finishing
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert, write_data_set
from evenfield.data_pipelines.convert.finish import ConversionError, SpellingError
from evenfield.data_pipelines.convert.splits import split_of
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import BrokenDataSetError, read_info
from evenfield.data_pipelines.structure import SPLITS, BadRecordError, Structure


LEVEL = {"level_of_theory": "level"}


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(conversion, "SHARD_SIZE", 16)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def everything(folder: Path) -> list:
    counts = read_info(folder)["num_structures"]
    return [s for split in SPLITS if counts[split] for s in iter_structures(folder, split)]


def test_every_structure_arrives_once_and_counts_add_up(data_set, emt_file):
    source = ase.io.read(emt_file, ":")
    info = read_info(data_set)
    assert sum(info["num_structures"].values()) == len(source)
    assert sum(shard["rows"] for shard in info["shards"].values()) == len(source)
    for split in SPLITS:
        rows = [shard["rows"] for name, shard in info["shards"].items() if name.startswith(split)]
        assert sum(rows) == info["num_structures"][split] > 0
        assert all(count == 16 for count in rows[:-1])
    energies = {s.structure_id: s.energy for s in everything(data_set)}
    assert energies == {
        f"metals-{k}": pytest.approx(a.get_potential_energy()) for k, a in enumerate(source)
    }
    assert info["levels_of_theory"] == ["EMT", "EMT-scaled"]
    assert sorted(contents(data_set)) == sorted(
        [*info["shards"], "census.json", "dataset_info.json", "fingerprints.npy"]
    )


def test_second_run_touches_nothing(emt_file, tmp_path, small_shards):
    config = ConvertConfig(columns=LEVEL)
    first = convert(emt_file, tmp_path / "out", config)
    before = times(tmp_path / "out")
    assert convert(emt_file, tmp_path / "out", config) == first
    assert times(tmp_path / "out") == before


def test_same_source_gives_the_same_bytes(emt_file, tmp_path, small_shards):
    for name in ("a", "b"):
        convert(emt_file, tmp_path / name, ConvertConfig(columns=LEVEL))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_other_config_converts_again_and_leaves_no_old_shard(emt_file, tmp_path, small_shards):
    out = tmp_path / "out"
    convert(emt_file, out, ConvertConfig(columns=LEVEL))
    other = ConvertConfig(columns=LEVEL, valid_share=0, test_share=0)
    info = convert(emt_file, out, other, overwrite=True)
    assert info["num_structures"]["valid"] == info["num_structures"]["test"] == 0
    assert {path.name for path in out.glob("*.parquet")} == set(info["shards"])


def test_files_of_others_in_the_folder_are_left_alone(emt_file, tmp_path):
    out = tmp_path / "out"
    convert(emt_file, out, ConvertConfig(columns=LEVEL))
    strangers = ["train-00000-of-00001.parquet", "mine.parquet", "notes.json", "plots/one.txt"]
    # commands draw under these names, and nothing here was drawn by them
    strangers += ["census.png", "weights.png", "inspection.png"]
    (out / "plots").mkdir()
    for name in strangers:
        (out / name).write_text("mine")
    (out / ".train-00000.parquet.0a1b.tmp").write_text("left by a killed conversion")
    (out / "inspection.html").write_bytes(PAGE_MARK + b"of the older data set")

    convert(emt_file, out, ConvertConfig(columns=LEVEL, licence="other"), overwrite=True)

    assert all((out / name).read_text() == "mine" for name in strangers)
    assert not list(out.glob(".*"))
    assert not (out / "inspection.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    # a page of the user's is kept, and an own picture is not
    (out / "inspection.html").write_text("mine")
    picture = figure_png(Figure(), kind="census of a data set")
    (out / "census.png").write_bytes(picture)
    convert(emt_file, out, ConvertConfig(columns=LEVEL), overwrite=True)
    assert (out / "inspection.html").read_text() == "mine"
    assert not (out / "census.png").exists()


@pytest.mark.parametrize("name", ["rejected.jsonl", "data_card.md", "train-00077.parquet"])
def test_files_of_others_under_names_of_a_data_set_are_refused(emt_file, tmp_path, name):
    out = tmp_path / "out"
    convert(emt_file, out, ConvertConfig(columns=LEVEL))
    (out / name).write_text("mine")
    other = ConvertConfig(columns=LEVEL, licence="other")
    with pytest.raises(DestinationError, match="is not a file of the data set"):
        convert(emt_file, out, other, overwrite=True)
    with pytest.raises(DestinationError, match="is not a file of the data set"):
        write_data_set([], out, {"file": "made", "sha256": ""}, other, overwrite=True)
    assert (out / name).read_text() == "mine"

    # nothing is written where the conversion is finished
    assert convert(emt_file, out, ConvertConfig(columns=LEVEL)) == read_info(out)


def test_interrupted_conversion_is_unfinished_and_runs_again(
    emt_file, tmp_path, small_shards, monkeypatch
):
    whole, written = finishing.write_shard, []

    def write_two(table, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return whole(table, path)

    out, config = tmp_path / "out", ConvertConfig(columns=LEVEL)
    monkeypatch.setattr(finishing, "write_shard", write_two)
    with pytest.raises(KeyboardInterrupt):
        convert(emt_file, out, config)
    assert len(written) == 2
    assert [path.name for path in out.iterdir()] == [".parts"]
    with pytest.raises(BrokenDataSetError, match=r"no dataset_info\.json"):
        read_info(out)

    monkeypatch.setattr(finishing, "write_shard", whole)
    convert(emt_file, out, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    convert(emt_file, tmp_path / "fresh", config)
    assert contents(out) == contents(tmp_path / "fresh")


def test_group_is_never_on_two_sides(data_set):
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        for s in iter_structures(data_set, split):
            sides.setdefault(s.group, set()).add(split)
    assert len(sides) > 20
    assert all(len(splits) == 1 for splits in sides.values())


@given(st.text(), st.floats(0, 0.4), st.floats(0, 0.4))
def test_split_depends_on_the_group_alone(group, valid, test):
    config = ConvertConfig(valid_share=valid, test_share=test)
    split = split_of(group, config)
    assert split == split_of(
        group, ConvertConfig(valid_share=valid, test_share=test, licence="x", skip_bad=True)
    )
    if split == "test":  # a larger test set keeps what was in it
        assert split_of(group, ConvertConfig(valid_share=valid, test_share=test + 0.1)) == "test"


def test_shares_of_groups_are_as_asked():
    config = ConvertConfig(valid_share=0.2, test_share=0.05)
    counts = Counter(split_of(f"group {k}", config) for k in range(4000))
    assert counts["valid"] / 4000 == pytest.approx(0.2, abs=0.03)
    assert counts["test"] / 4000 == pytest.approx(0.05, abs=0.015)


def test_given_split_is_honoured(emt_file, tmp_path):
    frames = ase.io.read(emt_file, ":12")
    for k, atoms in enumerate(frames):  # the hash would keep the 8 of the first group together
        atoms.info["split"] = SPLITS[k % 3]
    ase.io.write(tmp_path / "mine.extxyz", frames)
    out = tmp_path / "out"
    assert convert(tmp_path / "mine.extxyz", out, ConvertConfig(columns=LEVEL))[
        "num_structures"
    ] == {
        "train": 4,
        "valid": 4,
        "test": 4,
    }
    for k, split in enumerate(SPLITS):
        assert [s.structure_id for s in iter_structures(out, split)] == [
            f"mine-{i}" for i in range(k, 12, 3)
        ]


def test_filters_by_element(emt_file, tmp_path):
    columns = {"columns": LEVEL, "valid_share": 0, "test_share": 0}
    convert(
        emt_file,
        tmp_path / "a",
        ConvertConfig(with_elements=["Cu", "Ag"], without_elements=["Al"], **columns),
    )
    kept = {s.structure_id for s in iter_structures(tmp_path / "a", "train")}
    expected = set()
    for k, atoms in enumerate(ase.io.read(emt_file, ":")):
        if {"Cu", "Ag"} & set(atoms.symbols) and "Al" not in atoms.symbols:
            expected.add(f"metals-{k}")
    assert kept == expected


# --- what is there already


def test_failed_conversion_leaves_a_finished_data_set_as_it_is(emt_file, tmp_path):
    out = tmp_path / "out"
    convert(emt_file, out, ConvertConfig(columns=LEVEL))
    before = contents(out)
    bad = tmp_path / "bad.extxyz"
    bad.write_text(emt_file.read_text() + BAD)

    with pytest.raises(DestinationError, match=r"out: already exists and holds a data set \("):
        convert(bad, out, ConvertConfig(columns=LEVEL))
    with pytest.raises(BadRecordError, match="infinite energy"):
        convert(bad, out, ConvertConfig(columns=LEVEL), overwrite=True)

    assert contents(out) == before
    info = convert(bad, out, ConvertConfig(columns=LEVEL, skip_bad=True), overwrite=True)
    assert info["records"]["rejected"] == 1
    assert read_info(out) == info


def test_folder_of_something_else_is_never_replaced(emt_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    manifest = b'{"format_version": 3, "sha256": ""}'
    (out / "manifest.json").write_bytes(manifest)
    for overwrite in (False, True):
        with pytest.raises(DestinationError, match="a model"):
            convert(emt_file, out, ConvertConfig(columns=LEVEL), overwrite=overwrite)
    assert contents(out) == {"manifest.json": manifest}


def test_folder_that_holds_the_source_is_refused(emt_file, tmp_path):
    out = tmp_path / "out"
    convert(emt_file, out, ConvertConfig(columns=LEVEL))
    (out / "metals.extxyz").write_bytes(emt_file.read_bytes())
    with pytest.raises(DestinationError, match="is read by this command"):
        convert(out / "metals.extxyz", out, ConvertConfig(columns=LEVEL), overwrite=True)


def test_unfinished_data_set_of_another_source_is_refused(emt_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(conversion, "RECORDS_PER_PART", 20)
    convert(emt_file, out, ConvertConfig(columns=LEVEL), workers=1, task=(1, 2))
    staged = list(out.rglob("*.parquet"))
    other = tmp_path / "other.extxyz"
    other.write_bytes(emt_file.read_bytes() * 2)

    with pytest.raises(DestinationError, match="an unfinished data set"):
        convert(other, out, ConvertConfig(columns=LEVEL), workers=1)
    assert list(out.rglob("*.parquet")) == staged

    # the same source with other settings loses nothing either, until it is whole
    convert(emt_file, out, ConvertConfig(columns=LEVEL, licence="x"), workers=1, task=(1, 2))
    assert set(staged) < set(out.rglob("*.parquet"))


def test_of_two_conversions_at_once_the_second_says_what_happened(emt_file, tmp_path, monkeypatch):
    """It asked for room on the disk, because the first one had removed its parts."""
    out = tmp_path / "out"
    other = tmp_path / "other.extxyz"
    other.write_bytes(emt_file.read_bytes())
    read = conversion._read

    def read_while_another_converts(*arguments):
        monkeypatch.setattr(conversion, "_read", read)
        yield from read(*arguments)
        # OUT was free when this conversion began
        convert(other, out, ConvertConfig(columns=LEVEL), workers=1, overwrite=True)

    monkeypatch.setattr(conversion, "_read", read_while_another_converts)
    with pytest.raises(DestinationError, match="replaced by another process") as told:
        convert(emt_file, out, ConvertConfig(columns=LEVEL), workers=1)
    assert "choose another OUT" in told.value.remedy
    assert read_info(out)["source"]["file"] == "other.extxyz"


# --- bad records

BAD = '1\nProperties=species:S:1:pos:R:3 energy=nan level=EMT pbc="F F F"\nCu 0 0 0\n'


@pytest.fixture
def file_with_bad_records(emt_file, tmp_path) -> Path:
    ase.io.write(tmp_path / "a.extxyz", ase.io.read(emt_file, ":30"))
    path = tmp_path / "bad.extxyz"
    path.write_text(BAD + (tmp_path / "a.extxyz").read_text() + BAD)
    return path


def test_bad_record_stops_a_conversion(file_with_bad_records, tmp_path):
    with pytest.raises(
        BadRecordError, match=rf"^{file_with_bad_records}: record 0 has NaN or infinite energy"
    ):
        convert(file_with_bad_records, tmp_path / "out", ConvertConfig(columns=LEVEL))
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def test_skipped_records_are_set_aside_and_counts_add_up(file_with_bad_records, tmp_path):
    config = ConvertConfig(columns=LEVEL, skip_bad=True)
    info = convert(file_with_bad_records, tmp_path / "out", config)
    rejected = [
        json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    ]
    assert info["records"] == {"read": 32, "kept": 30, "filtered": 0, "rejected": 2}
    assert sum(info["num_structures"].values()) == 30
    assert [row["record"] for row in rejected] == [0, 31]
    assert all(
        row["file"] == str(file_with_bad_records) and "infinite energy" in row["reason"]
        for row in rejected
    )


def test_skipping_does_not_forgive_a_cut_off_file(file_with_bad_records, tmp_path):
    file_with_bad_records.write_text(file_with_bad_records.read_text()[:-30])
    with pytest.raises(SourceError, match="record 31 cannot be read"):
        convert(
            file_with_bad_records, tmp_path / "out", ConvertConfig(columns=LEVEL, skip_bad=True)
        )


def test_nothing_to_train_on_is_an_error(file_with_bad_records, tmp_path):
    config = ConvertConfig(columns=LEVEL, skip_bad=True, with_elements=["U"])
    with pytest.raises(
        ConversionError, match=r"bad\.extxyz: no structure is left to train on: check the splits"
    ):
        convert(file_with_bad_records, tmp_path / "out", config)
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def test_split_by_group_or_structure_ignores_the_file_s_own_split(tmp_path: Path) -> None:
    """A published split with other names than ours is an error that says what to do."""
    frames = []
    for k in range(40):
        atoms = bulk("Cu")
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0 - 0.01 * k)
        atoms.info |= {"split": "test_300K", "group": "all", "level_of_theory": "EMT"}
        frames.append(atoms)
    ase.io.write(tmp_path / "md.extxyz", frames)
    with pytest.raises(BadRecordError, match=r"split 'test_300K'.*split_by=group"):
        convert(tmp_path / "md.extxyz", tmp_path / "out", ConvertConfig())
    halves = {"test_share": 0.5, "valid_share": 0.0}
    info = convert(
        tmp_path / "md.extxyz", tmp_path / "one", ConvertConfig(split_by="structure", **halves)
    )
    assert 8 <= info["num_structures"]["test"] <= 32
    groups = {f"g{k}": split_of(f"g{k}", ConvertConfig(**halves)) for k in range(40)}
    for atoms, group in zip(frames, groups, strict=True):
        atoms.info["group"] = group
    ase.io.write(tmp_path / "md.extxyz", frames)
    info = convert(
        tmp_path / "md.extxyz", tmp_path / "two", ConvertConfig(split_by="group", **halves)
    )
    assert info["num_structures"]["test"] == sum(split == "test" for split in groups.values())


@pytest.mark.parametrize("other", ["EMT ", "emt", "E_M T", "\uff25MT"])
def test_one_level_of_theory_in_two_spellings_is_refused(tmp_path, other):
    frames = []
    for number in range(4):
        atoms = bulk("Cu") * (number + 1, 1, 1)
        atoms.calc = SinglePointCalculator(atoms, energy=-3.0 * len(atoms))
        atoms.info["level"] = "EMT" if number % 2 else other
        frames.append(atoms)
    folder = tmp_path / "set"
    # text formats drop blanks at the end
    with ase.db.connect(tmp_path / "named.db") as database:
        for atoms in frames:
            database.write(atoms, data={"level": atoms.info["level"]})
    config = ConvertConfig(columns=LEVEL, split_by="structure", trust_units=True)
    with pytest.raises(SpellingError) as refusal:
        convert(tmp_path / "named.db", folder, config)
    assert repr(other) in str(refusal.value)
    assert "'EMT'" in str(refusal.value)
    assert not (folder / "dataset_info.json").exists()

    # one name for all of them
    convert(tmp_path / "named.db", folder, ConvertConfig(level_of_theory="EMT", trust_units=True))
    assert read_info(folder)["levels_of_theory"] == ["EMT"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("forces", np.zeros((3, 3))), ("stress", np.zeros(4)), ("energy", np.zeros(2))],
)
def test_a_label_of_a_wrong_shape_is_not_written(tmp_path, name, value):
    """Readers trust the shapes of a data set: they would take numbers of the next structure."""
    atoms = bulk("Cu", cubic=True)
    labels = {"energy": -1.0, name: value}
    made = Structure.from_atoms(atoms, "EMT", "copper", "copper", **labels)
    with pytest.raises(BadRecordError, match=f"record copper has {name} of shape"):
        write_data_set([made], tmp_path / "out", {"file": "made", "sha256": ""}, ConvertConfig())
    assert not (tmp_path / "out" / "dataset_info.json").exists()
