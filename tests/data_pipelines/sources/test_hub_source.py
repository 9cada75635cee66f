"""A hub data set, read by the real client from a hub on 127.0.0.1.

It runs in a process of its own, because the client reads the address of the hub on import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_hub_server import COMMIT, serve


CARD = """---
configs:
- config_name: small
  default: true
  data_files:
  - {split: train, path: small/train-*.parquet}
  - {split: val, path: small/val-*.parquet}
- config_name: notes
  data_files: notes.jsonl
---
"""
WORDS = [
    "columns.energy=E",
    "units.energy=eV",
    "columns.forces=F",
    "units.forces=eV/A",
    "level_of_theory=EMT",
]


@pytest.fixture(scope="module")
def hub_folder(alloys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    (folder / "small").mkdir()
    for name, frames in {
        "train-00000-of-00001": alloys[:18],
        "val-00000-of-00001": alloys[18:],
    }.items():
        columns = {
            "atomic_numbers": [a.get_chemical_symbols() for a in frames],
            "positions": [a.positions.tolist() for a in frames],
            "cell": [a.cell.array.tolist() for a in frames],
            "E": [a.get_potential_energy() for a in frames],
            "F": [a.get_forces().tolist() for a in frames],
        }
        pq.write_table(pa.table(columns), folder / "small" / f"{name}.parquet", row_group_size=6)
    (folder / "notes.jsonl").write_text('{"text": "no structures"}\n')
    (folder / "README.md").write_text(CARD)
    return folder


def convert(address: str, home: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    environment |= {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "evenfield.cli", "data", "convert", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_conversion_streams_from_the_hub(hub_folder, tmp_path):
    with serve("me/alloys", hub_folder) as (address, log):
        done = convert(address, tmp_path / "home", "me/alloys@main", str(tmp_path / "out"), *WORDS)
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info["num_structures"] == {"train": 18, "valid": 6, "test": 0}  # as its files are named
    assert info["source"]["file"] == "me/alloys@main"
    read = [
        line
        for line in log
        if ".parquet" in line and "/resolve/" in line and line.startswith("GET")
    ]
    assert read and all(
        COMMIT in line for line in read
    )  # the commit is pinned before anything is read
    assert not list((tmp_path / "home").rglob("*.parquet"))  # streamed, not downloaded


@pytest.mark.parametrize(
    ("source", "words", "problem"),
    [
        (
            "me/nothing",
            [],
            "error: me/nothing: no such file or folder, and the hub does not provide it (",
        ),
        (
            "me/alloys",
            ["hub_config=notes"],
            "name its Parquet copy, me/alloys@refs/convert/parquet, or download",
        ),
    ],
)
def test_what_the_hub_does_not_hold(hub_folder, tmp_path, source, words, problem):
    with serve("me/alloys", hub_folder) as (address, _):
        done = convert(address, tmp_path / "home", source, str(tmp_path / "out"), *WORDS, *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert problem in lines[0]


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"])
def test_a_cache_that_cannot_be_written_is_not_a_missing_data_set(
    hub_folder, tmp_path, monkeypatch, variable
):
    """Not even the superuser can make a folder there."""
    home = tmp_path / "home"
    folder = Path("/proc/nothing")
    if variable == "HF_HOME":
        home = folder
    else:
        monkeypatch.setenv(variable, str(folder))
    with serve("me/alloys", hub_folder) as (address, _):
        done = convert(address, home, "me/alloys@main", str(tmp_path / "out"), *WORDS)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0] == (
        "error: /proc/nothing: the cache of the hub's client cannot be used (No such file or "
        f"directory): set {variable} to a folder that you may write to"
    )
