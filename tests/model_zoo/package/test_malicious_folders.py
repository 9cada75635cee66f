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


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def set_config(folder: Path, **changes: Any) -> None:
    rewrite(folder, "config.json", json.dumps(config_of(folder) | changes).encode())


def set_architecture(folder: Path, **changes: Any) -> None:
    set_config(folder, architecture=config_of(folder)["architecture"] | changes)


def set_record(folder: Path, **changes: Any) -> None:
    set_config(folder, record=config_of(folder)["record"] | changes)


def set_weights(folder: Path, **changes: Any) -> None:
    """Tensors changed, or left out where None; the metadata stays."""
    metadata = {
        "evenfield": json.dumps(
            {"format_version": 2, "architecture": config_of(folder)["architecture"]}
        )
    }
    tensors = load_file(folder / WEIGHTS)
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file(
        {n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS, metadata=metadata
    )
    sign(folder)


def set_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_file(folder: Path, name: str, **entry: Any) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    set_manifest(folder, files=files | {name: {"sha256": "0" * 64, "bytes": 1} | entry})


def set_header(
    folder: Path, header: Any, length: int | None = None, body: bytes = b"\0" * 64
) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    rewrite(
        folder, WEIGHTS, struct.pack("<Q", len(text) if length is None else length) + text + body
    )


def link(folder: Path, name: str, target: str | Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)


def pickled_weights(folder: Path) -> None:
    rewrite(folder, WEIGHTS, pickle.dumps(Bomb(folder.parent / "ran")))


def torch_archive(folder: Path) -> None:
    torch.save({"e0": Bomb(folder.parent / "ran")}, folder / WEIGHTS)
    sign(folder)


def zip_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", b"\0" * 10_000_000)
    sign(folder)


def code_beside(folder: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')")
    add_file(folder, "modeling.py")


def secret_file(folder: Path) -> Path:
    (folder.parent / "secret").write_text("not yours")
    return folder.parent / "secret"


def swapped_levels(folder: Path) -> None:
    """The heads in another order: energies of one level of theory sold as those of the other."""
    set_architecture(folder, levels_of_theory=["EMT", "PBE"])


def another_models_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    rewrite(folder, WEIGHTS, data.replace(b'cutoff\\": 4.0', b'cutoff\\": 5.0'))


def shards(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_bytes((folder / WEIGHTS).read_bytes())
        add_file(folder, name)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    set_manifest(folder, files={n: e for n, e in files.items() if n != WEIGHTS})
    sign(folder)


NAN = torch.full((2, 119), torch.nan, dtype=torch.float64)
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle renamed": (pickled_weights, "not a whole safetensors"),
    "torch archive renamed": (torch_archive, "not a whole safetensors"),
    "zip archive": (zip_archive, "not a whole safetensors"),
    "empty weights": (lambda f: rewrite(f, WEIGHTS, b""), "not a whole safetensors"),
    "huge header": (lambda f: set_header(f, {}, length=1 << 62), "not a whole safetensors"),
    "header over 100 MB": (
        lambda f: set_header(f, {}, length=200_000_000),
        "not a whole safetensors",
    ),
    "header is no JSON": (lambda f: set_header(f, b"\xff\xfe{{{{{{"), "not a whole safetensors"),
    "header is deep": (lambda f: set_header(f, DEEP), "not a whole safetensors"),
    "offsets beyond the file": (
        lambda f: set_header(
            f, {"e0": {"dtype": "F64", "shape": [9], "data_offsets": [0, 1 << 40]}}
        ),
        "not a whole safetensors",
    ),
    "offsets that overlap": (
        lambda f: set_header(
            f, {n: {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]} for n in ("a", "b")}
        ),
        "not a whole safetensors",
    ),
    "shape that overflows": (
        lambda f: set_header(
            f, {"e0": {"dtype": "F64", "shape": [1 << 62, 8], "data_offsets": [0, 64]}}
        ),
        "not a whole safetensors",
    ),
    "truncated weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        r"has [\d,]+ bytes, but manifest\.json states [\d,]+",
    ),
    "truncated and signed": (
        lambda f: rewrite(f, WEIGHTS, (f / WEIGHTS).read_bytes()[:-9]),
        "not a whole",
    ),
    "one bit flipped": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1] + b"\x01"),
        "does not match its sha256",
    ),
    "NaN weights": (lambda f: set_weights(f, e0=NAN), "e0 holds NaN or infinity"),
    "infinite weights": (
        lambda f: set_weights(f, scale=torch.full((2,), torch.inf, dtype=torch.float64)),
        "scale holds",
    ),
    "missing tensor": (lambda f: set_weights(f, e0=None), "missing e0"),
    "unexpected tensor": (lambda f: set_weights(f, code=torch.zeros(1)), "unexpected code"),
    "wrong shape": (lambda f: set_weights(f, e0=torch.zeros(2, 50).double()), r"e0 is \(2, 50\)"),
    "wrong dtype": (
        lambda f: set_weights(f, e0=torch.zeros(2, 119)),
        r"float32, not \(2, 119\) torch.float64",
    ),
    "weights without metadata": (
        lambda f: rewrite(f, WEIGHTS, save(load_file(f / WEIGHTS))),
        "belongs to another config.json",
    ),
    "weights of another cutoff": (another_models_weights, "belongs to another config.json"),
    "heads swapped": (swapped_levels, "belongs to another config.json"),
    "path out of the folder": (
        lambda f: add_file(f, "../secret.json"),
        r"'\.\./secret\.json' is not the name",
    ),
    "absolute path": (lambda f: add_file(f, "/etc/passwd"), "'/etc/passwd' is not the name"),
    "path of another system": (
        lambda f: add_file(f, "..\\secret.json"),
        "is not the name of a file",
    ),
    "hidden file": (lambda f: add_file(f, ".netrc"), "is not the name of a file"),
    "line break in a name": (lambda f: add_file(f, "a\nb.json"), "is not the name of a file"),
    "pickle listed": (lambda f: add_file(f, "model.pkl"), "'model.pkl' is not the name"),
    "code listed": (code_beside, r"'modeling\.py' is not the name"),
    "very long name": (lambda f: add_file(f, "a" * 5000 + ".json"), "is not the name of a file"),
    "file missing": (lambda f: add_file(f, "probe.extxyz"), "file is missing"),
    "hash is no hash": (lambda f: add_file(f, "probe.extxyz", sha256="x"), "sha256"),
    "size below zero": (
        lambda f: add_file(f, "probe.extxyz", bytes=-1),
        "greater than or equal to 0",
    ),
    "text of 1 TB": (
        lambda f: add_file(f, "probe.extxyz", bytes=1 << 40),
        "manifest states 1,099,511,627,776 bytes",
    ),
    "too many files": (
        lambda f: set_manifest(
            f, files={f"a{k}.json": {"sha256": "0" * 64, "bytes": 1} for k in range(2000)}
        ),
        "at most 1000 items",
    ),
    "shard missing": (
        lambda f: shards(f, ["model-00001-of-00002.safetensors"]),
        "completely and exactly once",
    ),
    "shards of a million": (
        lambda f: shards(f, ["model-00001-of-99999.safetensors"]),
        "completely and exactly once",
    ),
    "same tensor in two shards": (
        lambda f: shards(
            f, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        ),
        "which another shard holds too",
    ),
    "weights twice": (
        lambda f: add_file(f, "model-00001-of-00001.safetensors"),
        "completely and exactly once",
    ),
    "link to a secret": (lambda f: link(f, "README.md", secret_file(f)), "is a link out of"),
    "link to a device": (lambda f: link(f, WEIGHTS, "/dev/zero"), "file is missing"),
    "pipe": (lambda f: [(f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)], "file is missing"),
    "folder for a file": (
        lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()],
        "file is missing",
    ),
    "manifest is a list": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "is not a JSON object",
    ),
    "manifest is deep": (lambda f: (f / "manifest.json").write_bytes(DEEP), "is not valid JSON"),
    "manifest in part": (
        lambda f: (f / "manifest.json").write_text('{"files": {'),
        "is not valid JSON",
    ),
    "manifest of another kind": (lambda f: set_manifest(f, run="rm -rf /"), "run: Extra inputs"),
    "newer manifest": (
        lambda f: set_manifest(f, format_version=FORMAT_VERSION + 1),
        "is newer than.*upgrade evenfield",
    ),
    "version is a text": (
        lambda f: set_manifest(f, format_version="2; import os"),
        "format_version is '2; import os'",
    ),
    "newer config": (
        lambda f: set_config(f, format_version=999),
        "is newer than.*upgrade evenfield",
    ),
    "config is deep": (lambda f: rewrite(f, "config.json", DEEP), "is not valid JSON"),
    "evaluation is a list": (
        lambda f: rewrite(f, "evaluation.json", b"[1]"),
        "is not a JSON object",
    ),
    "no architecture": (lambda f: set_config(f, architecture=None), "lacks the architecture"),
    "unknown key": (lambda f: set_architecture(f, target="os.system"), "target: Extra inputs"),
    "model of a million channels": (
        lambda f: set_architecture(f, channels=1_000_000),
        "channels: .*less than or equal to 8192",
    ),
    "more weights than there are": (
        lambda f: set_architecture(f, channels=8192),
        "far more weights than",
    ),
    "a thousand layers": (
        lambda f: set_architecture(f, num_layers=1000),
        "num_layers: .*less than or equal to 64",
    ),
    "cutoff of a mile": (
        lambda f: set_architecture(f, cutoff=1e9),
        "cutoff: .*less than or equal to 100",
    ),
    "cutoff is NaN": (lambda f: set_architecture(f, cutoff=float("nan")), "cutoff: .*got nan"),
    "unknown dtype": (
        lambda f: set_config(f, dtype="__import__"),
        "lacks '__import__', or does not know it",
    ),
    "level twice": (
        lambda f: set_architecture(f, levels_of_theory=["PBE", "PBE"]),
        "names a level of theory twice",
    ),
    "element that is none": (
        lambda f: set_record(f, elements={"PBE": ["Cu", "Xx"]}),
        "lists 'Xx', which is not an element",
    ),
    "elements of no level": (
        lambda f: set_record(f, elements={"HSE": ["Cu"]}),
        "for 'HSE', which is not one of its levels",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_folder_is_refused(folder: Path, case: str) -> None:
    change, message = CASES[case]
    change(folder)
    before = sorted(folder.parent.iterdir())
    with pytest.raises(BadModelError, match=message) as refusal:
        model_zoo.load(folder)
    line = str(refusal.value)
    assert "\n" not in line and len(line) < 1000
    assert str(folder) in line
    assert sorted(folder.parent.iterdir()) == before  # nothing ran, nothing was written


def test_there_are_forty_cases_and_the_bomb_is_live(folder: Path) -> None:
    assert len(CASES) >= 40
    pickle.loads(pickle.dumps(Bomb(folder.parent / "ran")))
    assert (folder.parent / "ran").exists()
    sign(folder)
    assert model_zoo.load(folder).record.name == "copper"


@pytest.mark.parametrize(
    "name",
    ["../copper", "me/..", "me/../copper", "/etc", "me/copper@../main", "me\\copper", "-x/y"],
)
def test_reference_that_is_a_path_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(EvenfieldError, match=r"neither a folder nor a|not a model folder"):
        model_zoo.load(name, tmp_path)
