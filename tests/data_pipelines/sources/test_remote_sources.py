"""Sources that are not on this machine: S3 through a real client and a store on 127.0.0.1."""

from __future__ import annotations

import ase.io
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.locations import SourceError
from evenfield.data_pipelines.sources.read import (
    list_parts,
    read_structures,
    source_fingerprint,
)


CONFIG = SourceConfig(
    columns={"energy": "E", "forces": "F"},
    units={"energy": "eV", "forces": "eV/A"},
    level_of_theory="EMT",
)


def write_table(frames, path, **options):
    columns = {
        "atomic_numbers": [a.numbers.tolist() for a in frames],
        "positions": [a.positions.tolist() for a in frames],
        "cell": [a.cell.array.tolist() for a in frames],
        "E": [a.get_potential_energy() for a in frames],
        "F": [a.get_forces().tolist() for a in frames],
    }
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.fixture(scope="module")
def bucket():
    """s3://bucket of a moto server; the client finds it through the variables that users set."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        yield store
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3(bucket, alloys, tmp_path):
    write_table(alloys, tmp_path / "rows.parquet", row_group_size=6)
    ase.io.write(tmp_path / "rows.extxyz", alloys)
    for name in ("rows.parquet", "rows.extxyz"):
        bucket.put(str(tmp_path / name), f"bucket/set/{name}")
    expected = [a.get_potential_energy() for a in alloys]

    parts = list_parts("s3://bucket/set/rows.parquet", CONFIG, records_per_part=12)
    assert [(p.name, p.first, p.last) for p in parts] == [
        ("s3://bucket/set/rows.parquet", 0, 12),
        ("s3://bucket/set/rows.parquet", 12, 24),
    ]
    assert [
        s.energy for s in read_structures("s3://bucket/set/rows.parquet", CONFIG)
    ] == pytest.approx(expected)
    ase_config = SourceConfig(level_of_theory="EMT")
    assert [
        s.energy for s in read_structures("s3://bucket/set/*.extxyz", ase_config)
    ] == pytest.approx(expected)
    assert [p.name for p in list_parts("s3://bucket/set", CONFIG)] == [
        "s3://bucket/set/rows.extxyz",
        "s3://bucket/set/rows.parquet",
    ]

    before = source_fingerprint("s3://bucket/set/rows.parquet", CONFIG)
    write_table(alloys[:5], tmp_path / "rows.parquet")
    bucket.put(str(tmp_path / "rows.parquet"), "bucket/set/rows.parquet")
    bucket.invalidate_cache()
    assert source_fingerprint("s3://bucket/set/rows.parquet", CONFIG) != before


def test_conversion_from_s3(bucket, alloys, tmp_path):
    write_table(alloys, tmp_path / "rows.parquet")
    bucket.put(str(tmp_path / "rows.parquet"), "bucket/again/rows.parquet")
    config = ConvertConfig(**CONFIG.model_dump() | {"split_by": "structure"})
    info = convert("s3://bucket/again/rows.parquet", tmp_path / "out", config)
    assert sum(info["num_structures"].values()) == len(alloys)
    assert info["source"]["file"] == "s3://bucket/again/rows.parquet"


def test_key_that_is_not_there(bucket):
    with pytest.raises(
        SourceError,
        match=r"^s3://bucket/nothing: contains no file that ends in \.parquet.*: name another",
    ):
        list_parts("s3://bucket/nothing", CONFIG)


def test_store_that_cannot_be_reached(bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        SourceError, match=r"^s3://bucket/x\.parquet: cannot be reached \(.*\): check the name"
    ):
        list_parts("s3://bucket/x.parquet", CONFIG)


def test_scheme_that_nobody_knows():
    with pytest.raises(
        SourceError, match=r"^sftpp://host/x\.xyz: cannot be reached \(Protocol not known: sftpp"
    ):
        list_parts("sftpp://host/x.xyz", CONFIG)


def test_hub_without_network_is_one_line():
    with pytest.raises(
        SourceError,
        match=r"^nobody/nothing@v1: no such file or folder, and HF_HUB_OFFLINE keeps evenfield",
    ):
        list_parts("nobody/nothing@v1", CONFIG)
