"""Sources that are no files, or that hold what may not be read: one error, no waiting, no gap."""

from __future__ import annotations

import os

import pytest
from ase.io import write

from evenfield.data_pipelines.sources.ase_files import read_one
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError, list_files
from evenfield.data_pipelines.sources.read import list_parts, read_structures
from evenfield.data_pipelines.store.shards import BrokenDataSetError, read_json
from evenfield.model_zoo.hub.load import load
from evenfield.model_zoo.hub.remote import HubError


EMT = SourceConfig(level_of_theory="EMT")
NAMES = ("a.extxyz", "a.db", "a.aselmdb", "a.parquet", "a.traj", "POSCAR")


@pytest.mark.parametrize("name", NAMES)
def test_a_named_pipe_is_no_source(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    for read in (
        lambda: list(read_structures(path, EMT)),
        lambda: list_parts(str(path), EMT),
        lambda: list_files(str(tmp_path / "*"), ()),
        lambda: read_one(path),
    ):
        with pytest.raises(SourceError, match=rf"^{path}: is a named pipe, not a file: save"):
            read()


def test_a_named_pipe_inside_a_folder_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.extxyz")
    with pytest.raises(SourceError, match="is a named pipe"):
        list_parts(str(tmp_path), EMT)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(SourceError, match="is a folder, not a file: name a file inside it"):
        read_one(tmp_path)


def test_a_folder_with_the_name_of_a_file_is_searched(tmp_path, alloys):
    (tmp_path / "run.extxyz").mkdir()
    write(tmp_path / "run.extxyz" / "a.extxyz", alloys)
    assert list_files(str(tmp_path), (".extxyz",)) == [str(tmp_path / "run.extxyz" / "a.extxyz")]


def test_a_forbidden_subfolder_is_not_left_out(tmp_path, alloys):
    write(tmp_path / "a.extxyz", alloys)
    hidden = tmp_path / "sub"
    hidden.mkdir()
    write(hidden / "b.extxyz", alloys)
    hidden.chmod(0)
    user = os.geteuid()
    # pytest makes its folders for their owner alone
    private = [above for above in (tmp_path, *tmp_path.parents) if not above.stat().st_mode & 0o077]
    for above in private:
        above.chmod(0o755)
    try:
        if os.geteuid() == 0:
            # the superuser may read everything
            os.seteuid(65534)
        with pytest.raises(SourceError, match=rf"^{hidden}: cannot be read \(Perm"):
            list_files(str(tmp_path), (".extxyz",))
    finally:
        os.seteuid(user)
        for above in private:
            above.chmod(0o700)
        hidden.chmod(0o755)


def test_a_named_pipe_in_a_data_set_is_not_opened(tmp_path):
    path = tmp_path / "census.json"
    os.mkfifo(path)
    with pytest.raises(BrokenDataSetError, match="is a named pipe"):
        read_json(path, 100)


def test_a_named_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "model")
    with pytest.raises(HubError, match="is a named pipe: name the folder of a model"):
        load(tmp_path / "model")
