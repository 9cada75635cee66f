"""Model folders that are broken or malicious: one clear line each, no code run, no file touched.

Most of them get a new manifest after the change: then the hash is right, and the content itself has
to be refused.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.model_zoo import BadModelError
from evenfield.model_zoo.package.manifest import FORMAT_VERSION

from small_models import rewrite, sign


WEIGHTS = "model.safetensors"


class Bomb:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


# --- changes of single files, with the manifest kept consistent


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def set_config(folder: Path, **changes: Any) -> None:
    config = read_json(folder / "config.json") | changes
    rewrite(folder, "config.json", json.dumps(config).encode())


def set_architecture(folder: Path, **changes: Any) -> None:
    architecture = read_json(folder / "config.json")["architecture"]
    set_config(folder, architecture=architecture | changes)


def set_record(folder: Path, **changes: Any) -> None:
    record = read_json(folder / "config.json")["record"]
    set_config(folder, record=record | changes)


def set_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace, add or (None) remove one tensor; the metadata stays as it would be written."""
    architecture = read_json(folder / "config.json")["architecture"]
    about = json.dumps({"format_version": 2, "architecture": architecture})
    tensors = load_file(folder / WEIGHTS)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS, metadata={"evenfield": about})
    sign(folder)


def set_header(folder: Path, header: Any, length: int | None = None) -> None:
    """Weights with this header, as JSON or bytes, which states `length`, and 64 bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    stated = len(text) if length is None else length
    rewrite(folder, WEIGHTS, struct.pack("<Q", stated) + text + b"\0" * 64)


def set_bytes(folder: Path, name: str, data: bytes) -> None:
    """Replace a file without a new manifest."""
    (folder / name).write_bytes(data)


def set_manifest(folder: Path, **changes: Any) -> None:
    content = read_json(folder / "manifest.json") | changes
    set_bytes(folder, "manifest.json", json.dumps(content).encode())


def list_file(folder: Path, name: str, **entry: Any) -> None:
    """Add an entry to the manifest; the file itself need not exist."""
    files = read_json(folder / "manifest.json")["files"]
    # a form that passes, so that only what `entry` states is at fault
    valid = {"sha256": "0" * 64, "bytes": 1}
    files[name] = valid | entry
    set_manifest(folder, files=files)


# --- weights that are something else


def pickled_weights(folder: Path) -> None:
    rewrite(folder, WEIGHTS, pickle.dumps(Bomb(folder.parent / "ran")))


def torch_archive(folder: Path) -> None:
    torch.save({"e0": Bomb(folder.parent / "ran")}, folder / WEIGHTS)
    sign(folder)


def zip_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", b"\0" * 10_000_000)
    sign(folder)


def truncated_weights(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    # 9 bytes: more than one number, so that the last tensor cannot be whole
    set_bytes(folder, WEIGHTS, whole[:-9])


def truncated_and_signed(folder: Path) -> None:
    truncated_weights(folder)
    sign(folder)


def flipped_bit(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    set_bytes(folder, WEIGHTS, whole[:-1] + b"\x01")


def weights_without_metadata(folder: Path) -> None:
    rewrite(folder, WEIGHTS, save(load_file(folder / WEIGHTS)))


def weights_of_another_cutoff(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    # in the metadata, where no tensor shows the difference
    changed = data.replace(b'cutoff\\": 4.0', b'cutoff\\": 5.0')
    assert changed != data
    rewrite(folder, WEIGHTS, changed)


def shards(folder: Path, *names: str) -> None:
    """Whole copies of the weights under these names, in place of the weights."""
    data = (folder / WEIGHTS).read_bytes()
    for name in names:
        set_bytes(folder, name, data)
        list_file(folder, name)
    files = read_json(folder / "manifest.json")["files"]
    del files[WEIGHTS]
    set_manifest(folder, files=files)
    sign(folder)


# --- files that are something else


def listed_code(folder: Path) -> None:
    trace = folder.parent / "ran"
    (folder / "modeling.py").write_text(f"open({str(trace)!r}, 'w')")
    list_file(folder, "modeling.py")


def too_many_files(folder: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    files = {f"a{number}.json": entry for number in range(2000)}
    set_manifest(folder, files=files)


def many_keys(folder: Path) -> None:
    """Some MB of short keys, which take a hundred times as much in memory when they are checked."""
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    set_bytes(folder, "manifest.json", ("{" + keys + "}").encode())


def long_json(folder: Path, name: str) -> None:
    content = read_json(folder / name) | {"more": [[]] * 3_000_000}
    rewrite(folder, name, json.dumps(content).encode())


def many_empty_tensors(folder: Path) -> None:
    """Each takes some 80 bytes in the file, and an object with a storage in memory."""
    header = {}
    for number in range(100_000):
        header[str(number)] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    set_header(folder, header)


def large_settings(folder: Path, **settings: Any) -> None:
    """A file of weights that is large, yet far too small for the settings."""
    set_weights(folder, "filling", torch.zeros(9_000_000))
    set_architecture(folder, **settings)


def link(folder: Path, name: str, target: str | Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)


def link_to_a_secret(folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_text("not yours")
    link(folder, "README.md", secret)


def pipe(folder: Path) -> None:
    """Reading a pipe that nobody writes to waits for ever."""
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def folder_for_a_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


# --- the cases


@dataclass(frozen=True)
class Case:
    """A change of a good folder, and what the refusal must say."""

    message: str
    change: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def apply(self, folder: Path) -> None:
        self.change(folder, *self.arguments, **self.options)


def case(message: str, change: Callable[..., Any], *arguments: Any, **options: Any) -> Case:
    return Case(message, change, arguments, options)


NOT_SAFETENSORS = "not a whole safetensors"
NOT_A_NAME = "is not the name of a file"
NOT_ALL_WEIGHTS = "completely and exactly once"
OTHER_CONFIG = "belongs to another config.json"

NAN = torch.full((2, 119), torch.nan, dtype=torch.float64)
INFINITE = torch.full((2,), torch.inf, dtype=torch.float64)
# deeper than Python's recursion limit
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
FAR_OFFSETS = {"e0": {"dtype": "F64", "shape": [9], "data_offsets": [0, 1 << 40]}}
SAME_BYTES = {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}
HUGE_SHAPE = {"e0": {"dtype": "F64", "shape": [1 << 62, 8], "data_offsets": [0, 64]}}
FIRST_SHARD = "model-00001-of-00002.safetensors"
SECOND_SHARD = "model-00002-of-00002.safetensors"

CASES: dict[str, Case] = {
    "pickle renamed": case(NOT_SAFETENSORS, pickled_weights),
    "torch archive renamed": case(NOT_SAFETENSORS, torch_archive),
    "zip archive": case(NOT_SAFETENSORS, zip_archive),
    "empty weights": case(NOT_SAFETENSORS, rewrite, WEIGHTS, b""),
    "huge header": case(NOT_SAFETENSORS, set_header, {}, length=1 << 62),
    "header over 100 MB": case(NOT_SAFETENSORS, set_header, {}, length=200_000_000),
    "header is no JSON": case(NOT_SAFETENSORS, set_header, b"\xff\xfe{{{{{{"),
    "header is deep": case(NOT_SAFETENSORS, set_header, DEEP),
    "offsets beyond the file": case(NOT_SAFETENSORS, set_header, FAR_OFFSETS),
    "offsets that overlap": case(NOT_SAFETENSORS, set_header, {"a": SAME_BYTES, "b": SAME_BYTES}),
    "shape that overflows": case(NOT_SAFETENSORS, set_header, HUGE_SHAPE),
    "truncated weights": case(
        r"has [\d,]+ bytes, but manifest\.json states [\d,]+", truncated_weights
    ),
    "truncated and signed": case(NOT_SAFETENSORS, truncated_and_signed),
    "one bit flipped": case("does not match its sha256", flipped_bit),
    "NaN weights": case("e0 holds NaN or infinity", set_weights, "e0", NAN),
    "infinite weights": case("scale holds NaN or infinity", set_weights, "scale", INFINITE),
    "missing tensor": case("missing e0", set_weights, "e0", None),
    "unexpected tensor": case("unexpected code", set_weights, "code", torch.zeros(1)),
    "wrong shape": case(r"e0 is \(2, 50\)", set_weights, "e0", torch.zeros(2, 50).double()),
    "wrong dtype": case(
        r"float32, not \(2, 119\) torch.float64", set_weights, "e0", torch.zeros(2, 119)
    ),
    "weights without metadata": case(OTHER_CONFIG, weights_without_metadata),
    "weights of another cutoff": case(OTHER_CONFIG, weights_of_another_cutoff),
    # energies of one level of theory would be sold as those of the other
    "heads swapped": case(OTHER_CONFIG, set_architecture, levels_of_theory=["EMT", "PBE"]),
    "path out of the folder": case(
        r"'\.\./secret\.json' is not the name", list_file, "../secret.json"
    ),
    "absolute path": case("'/etc/passwd' is not the name", list_file, "/etc/passwd"),
    "path of another system": case(NOT_A_NAME, list_file, "..\\secret.json"),
    "hidden file": case(NOT_A_NAME, list_file, ".netrc"),
    "line break in a name": case(NOT_A_NAME, list_file, "a\nb.json"),
    "pickle listed": case("'model.pkl' is not the name", list_file, "model.pkl"),
    "code listed": case(r"'modeling\.py' is not the name", listed_code),
    "very long name": case(NOT_A_NAME, list_file, "a" * 5000 + ".json"),
    "file missing": case("file is missing", list_file, "probe.extxyz"),
    "hash is no hash": case("sha256", list_file, "probe.extxyz", sha256="x"),
    "size below zero": case("greater than or equal to 0", list_file, "probe.extxyz", bytes=-1),
    "text of 1 TB": case(
        "manifest states 1,099,511,627,776 bytes", list_file, "probe.extxyz", bytes=1 << 40
    ),
    "too many files": case("at most 1000 items", too_many_files),
    "shard missing": case(NOT_ALL_WEIGHTS, shards, FIRST_SHARD),
    "shards of a million": case(NOT_ALL_WEIGHTS, shards, "model-00001-of-99999.safetensors"),
    "same tensor in two shards": case(
        "which another shard holds too", shards, FIRST_SHARD, SECOND_SHARD
    ),
    "weights twice": case(NOT_ALL_WEIGHTS, list_file, "model-00001-of-00001.safetensors"),
    "link to a secret": case("is a link out of", link_to_a_secret),
    "link to a device": case("is a device, not a file", link, WEIGHTS, "/dev/zero"),
    "pipe": case("is a named pipe, not a file", pipe),
    "folder for a file": case("file is missing", folder_for_a_file),
    "manifest is a list": case("is not a JSON object", set_bytes, "manifest.json", b"[]"),
    "manifest is deep": case("is not valid JSON", set_bytes, "manifest.json", DEEP),
    "manifest in part": case("is not valid JSON", set_bytes, "manifest.json", b'{"files": {'),
    "manifest of another kind": case("run: Extra inputs", set_manifest, run="rm -rf /"),
    "newer manifest": case(
        "is newer than.*upgrade evenfield", set_manifest, format_version=FORMAT_VERSION + 1
    ),
    "version is a text": case(
        "format_version is '2; import os'", set_manifest, format_version="2; import os"
    ),
    "newer config": case("is newer than.*upgrade evenfield", set_config, format_version=999),
    "config is deep": case("is not valid JSON", rewrite, "config.json", DEEP),
    "evaluation is a list": case("is not a JSON object", rewrite, "evaluation.json", b"[1]"),
    "evaluation is none": case("split: not a text", rewrite, "evaluation.json", b'{"a": 1}'),
    "no architecture": case("lacks the architecture", set_config, architecture=None),
    "unknown key": case("target: Extra inputs", set_architecture, target="os.system"),
    "model of a million channels": case(
        "channels: .*less than or equal to 8192", set_architecture, channels=1_000_000
    ),
    "more weights than there are": case("far more weights than", set_architecture, channels=8192),
    "a thousand layers": case(
        "num_layers: .*less than or equal to 64", set_architecture, num_layers=1000
    ),
    "cutoff of a mile": case("cutoff: .*less than or equal to 100", set_architecture, cutoff=1e9),
    "cutoff is NaN": case("cutoff: .*got nan", set_architecture, cutoff=float("nan")),
    "unknown dtype": case(
        "lacks '__import__', or does not know it", set_config, dtype="__import__"
    ),
    "level twice": case(
        "names a level of theory twice", set_architecture, levels_of_theory=["PBE", "PBE"]
    ),
    # text and decimals were once read as whole numbers, after which the network was built
    "channels as a text": case("channels: .*valid integer", set_architecture, channels="8192"),
    "channels as a decimal": case("channels: .*valid integer", set_architecture, channels=8192.0),
    "count as a text": case("train_counts.*valid integer", set_record, train_counts={"Cu": "20"}),
    "more weights than 36 MB": case("far more weights than", large_settings, channels=8192),
    "wide readout of many layers": case(
        "far more weights than", large_settings, readout_size=8192, num_layers=64, channels=512
    ),
    "thousands of levels": case(
        "far more weights than",
        large_settings,
        levels_of_theory=[str(number) for number in range(100_000)],
    ),
    "weights of 1e38": case(
        "readout.weight holds numbers up to 1.0e\\+38",
        set_weights,
        "readout.weight",
        torch.full((2, 16), 1e38),
    ),
    "200,000 keys in the manifest": case("bytes, 1,048,576 are allowed", many_keys),
    "long config": case("bytes, 8,388,608 are allowed", long_json, "config.json"),
    "100,000 empty tensors": case("more than 10,000 tensors", many_empty_tensors),
    "element that is none": case(
        "lists 'Xx', which is not an element", set_record, elements={"PBE": ["Cu", "Xx"]}
    ),
    "elements of no level": case(
        "for 'HSE', which is not one of its levels", set_record, elements={"HSE": ["Cu"]}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_folder_is_refused(folder: Path, name: str) -> None:
    CASES[name].apply(folder)
    before = sorted(folder.parent.iterdir())

    with pytest.raises(BadModelError, match=CASES[name].message) as refusal:
        model_zoo.load(folder)
    line = str(refusal.value)
    assert "\n" not in line
    assert len(line) < 1000
    assert str(folder) in line
    # nothing ran, nothing was written
    assert sorted(folder.parent.iterdir()) == before


def test_a_name_that_was_changed_in_the_manifest_is_no_damage_of_the_file(folder: Path) -> None:
    list_file(folder, "probe.extxyz")
    rewrite(folder, "probe.extxyz", b"1\n\nH 0 0 0\n")
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("probe.extxyz", "prnbe.extxyz"))
    told = r"disagree: .* lists prnbe\.extxyz, and that content is in probe\.extxyz"
    with pytest.raises(BadModelError, match=told) as refusal:
        model_zoo.load(folder)
    assert refusal.value.file == str(manifest)

    # a file that is missing is missing
    manifest.write_text(text)
    (folder / "probe.extxyz").rename(folder.parent / "probe.extxyz")
    with pytest.raises(BadModelError, match="file is missing"):
        model_zoo.load(folder)


def test_all_cases_are_there_and_the_bomb_is_live(folder: Path) -> None:
    assert len(CASES) == 75  # the guides state this number
    # the cases prove nothing unless the bomb goes off where somebody unpickles it
    pickle.loads(pickle.dumps(Bomb(folder.parent / "ran")))
    assert (folder.parent / "ran").exists()

    # and unless a new manifest alone leaves a good folder good
    sign(folder)
    assert model_zoo.load(folder).record.name == "copper"


@pytest.mark.parametrize(
    "name",
    ["../copper", "me/..", "me/../copper", "/etc", "me/copper@../main", "me\\copper", "-x/y"],
)
def test_reference_that_is_a_path_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        EvenfieldError, match=r"neither a folder nor a|no such folder|not a model folder"
    ):
        model_zoo.load(name, tmp_path)
