"""A damaged data set: what the error says to do repairs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import ase.io
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.checks.leaks import leaks_among
from evenfield.data_pipelines.convert import convert as conversion
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.shards import BrokenDataSetError, read_info, write_info


INFO = "dataset_info.json"
SHARD = "train-00000.parquet"
# file -> a command that reads it
READERS = {
    SHARD: "inspect",
    "census.json": "weights",
    INFO: "census",
}
# for a reader, so no command reads them
LISTS = ("duplicates.jsonl", "rejected.jsonl")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, words)])


def done(*words: object) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.exception
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a byte, by default of the one in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def source(alloys, tmp_path) -> Path:
    """With a copy, which is listed in duplicates.jsonl, and a bad record for rejected.jsonl."""
    bad = alloys[0].copy()
    bad.info["energy"] = float("inf")
    path = tmp_path / "alloys.extxyz"
    ase.io.write(path, [*alloys, alloys[3], bad])
    return path


@pytest.fixture
def command(source, tmp_path) -> list[object]:
    settings = ["level_of_theory=EMT", "skip_bad=true", "--trust-units", "--workers", 1]
    return ["convert", source, tmp_path / "set", *settings]


@pytest.fixture
def folder(command, tmp_path) -> Path:
    done(*command)
    return tmp_path / "set"


def refusal(result: Result) -> EvenfieldError:
    assert isinstance(result.exception, EvenfieldError)
    return result.exception


def repaired(error: EvenfieldError, command: list[object], elsewhere: Path) -> Path:
    """Do what a remedy says; returns the folder that then holds the data set."""
    if error.remedy == "convert the source again":
        again = done(*command)
        name = Path(error.file).name
        (line,) = [line for line in again.stderr.splitlines() if name in line]
        assert line.endswith("; the source is converted again")
        return command[2]
    if error.remedy == "convert the source again with --overwrite, or into another folder":
        done(*command, "--overwrite")
        return command[2]
    assert error.remedy == "convert the source into another folder"
    done(*command[:2], elsewhere, *command[3:])
    return elsewhere


@pytest.mark.parametrize("name", READERS)
def test_the_remedy_for_a_damaged_file_repairs_the_data_set(name, command, folder, tmp_path):
    before = contents(folder)
    flip(folder / name)

    error = refusal(run(READERS[name], folder))
    assert Path(error.file) == folder / name
    assert repaired(error, command, tmp_path / "other") == folder

    assert contents(folder) == before
    done(READERS[name], folder)


@pytest.mark.parametrize("name", [SHARD, "census.json"])
def test_the_remedy_for_a_missing_file_repairs_the_data_set(name, command, folder, tmp_path):
    before = contents(folder)
    (folder / name).unlink()
    repaired(refusal(run(READERS[name], folder)), command, tmp_path / "other")
    assert contents(folder) == before


def test_the_remedy_for_damaged_fingerprints_repairs_them(command, folder, tmp_path):
    before = contents(folder)
    other = Path(shutil.copytree(folder, tmp_path / "copy"))
    whole = leaks_among([folder, other])
    flip(folder / "fingerprints.npy")

    with pytest.raises(BrokenDataSetError) as told:
        leaks_among([folder, other])
    repaired(told.value, command, tmp_path / "other")

    assert contents(folder) == before
    assert leaks_among([folder, other]) == whole


@pytest.mark.parametrize("name", LISTS)
def test_a_damaged_list_is_written_again(name, command, folder):
    before = contents(folder)
    flip(folder / name)
    assert f"{folder / name}: was changed since" in done(*command).stderr
    assert contents(folder) == before


@pytest.mark.parametrize("key", ["census_sha256", "fingerprints_sha256", "lists_sha256"])
def test_a_data_set_without_all_checksums_is_not_finished(key, command, folder):
    before = contents(folder)
    info = read_info(folder)
    del info[key]
    write_info(folder, info)
    assert "lacks checksums of the other files" in done(*command).stderr
    assert contents(folder) == before


@pytest.mark.parametrize("text", [b'"schema_version"', b'"source"', b'"alloys.extxyz"', b"{"])
def test_the_remedy_for_any_part_of_the_info_leads_to_a_whole_set(text, command, folder, tmp_path):
    before = contents(folder)
    info = folder / INFO
    flip(info, info.read_bytes().index(text) + len(text) // 2)
    found = repaired(refusal(run("census", folder)), command, tmp_path / "other")
    assert contents(found) == before


def test_a_whole_data_set_is_left_as_it_is_unless_it_is_to_be_overwritten(command, folder):
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    written = (folder / INFO).stat().st_mtime_ns
    result = done(*command)
    assert "converted again" not in result.stderr
    assert (folder / INFO).stat().st_mtime_ns == written

    done(*command, "--overwrite")
    assert (folder / INFO).stat().st_mtime_ns > written
    assert contents(folder) == before


def test_a_data_set_of_another_source_is_not_replaced_because_it_is_damaged(
    alloys, command, folder, source
):
    flip(folder / SHARD)
    before = contents(folder)
    ase.io.write(source, alloys[:20])
    error = refusal(run(*command))
    assert "already exists and holds a data set" in error.message
    assert contents(folder) == before


def test_a_damaged_set_stays_until_the_new_one_is_whole(source, command, folder, monkeypatch):
    whole = contents(folder)
    flip(folder / SHARD)
    damaged = contents(folder)

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    config = ConvertConfig(level_of_theory="EMT", skip_bad=True, trust_units=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(conversion, "finish", stop)
        convert(source, folder, config, workers=1)
    assert contents(folder) == damaged

    done(*command)
    assert contents(folder) == whole
    assert not list(folder.glob(".*"))


def test_a_damaged_corpus_is_built_again(source, tmp_path):
    recipe = {
        "name": "alloys",
        "description": "made up",
        "sources": {
            "first": {
                "files": source.name,
                "level_of_theory": "EMT",
                "skip_bad": True,
                "trust_units": True,
                "licence": "MIT",
            }
        },
    }
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "set"
    command = ["corpus", tmp_path / "corpus.yaml", out, "--sources", tmp_path, "--workers", 1]
    done(*command)
    before = contents(out)
    flip(out / "census.json")

    error = refusal(run("weights", out))
    repaired(error, command, tmp_path / "other")
    assert contents(out) == before
    assert read_info(out)["source"]["file"] == "alloys"
