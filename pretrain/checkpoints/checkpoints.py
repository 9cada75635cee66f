"""Checkpoints that survive a kill at any moment: temporary name, manifest, rename, then `latest`.

A checkpoint does not depend on the number of ranks. Its folder contains

    engine.safetensors      weights and optimizer state, by name
    callbacks.safetensors   tensors that callbacks keep, such as averaged weights (optional)
    rng.safetensors         random number generators, one entry per rank
    manifest.json           step, positions in the stream, state of callbacks, settings, and the
                            sizes and hashes of all files, including its own content

All files are hashed before they are read. If a bit has flipped on the disk, the previous checkpoint
is used. Loading never unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...core.files import FileError, file_errors, write_atomically
from ...core.seals import SEAL, digest_of, sealed
from ...core.settings import Settings
from ..errors import NoCheckpointError, ResumeError
from ..loop.engine import Engine


FORMAT = 3  # of the files and of the settings in the manifest

# With hardware support, it is twice as fast as BLAKE2.
HASH = "sha256"


class CheckpointConfig(Settings):
    """How often a run is saved and how many checkpoints are kept."""

    every: int = Field(
        default=200,
        gt=0,
        description="steps between checkpoints",
        json_schema_extra={"resume": "applied"},
    )
    keep: int = Field(
        default=2,
        gt=0,
        description="number of newest checkpoints that are kept",
        json_schema_extra={"resume": "applied"},
    )


@dataclass
class Loaded:
    """The parts of a loaded checkpoint that do not belong to the engine."""

    step: int

    states: list[dict[str, Any]]
    """The trainer states of all ranks."""

    tensors: dict[str, Tensor]
    """The tensors of callbacks, named `NAME/KEY`."""

    manifest: dict[str, Any]

    skipped: list[str]
    """Newer, damaged checkpoints with reasons."""


def save_checkpoint(
    folder: Path,
    step: int,
    engine: Engine,
    state: dict[str, Any],
    keep: int,
    tensors: dict[str, Tensor] | None = None,
    about: dict[str, Any] | None = None,
) -> str | None:
    """Save engine, trainer states and random number generators of all ranks as `folder`/step-N.

    All ranks must call this together. Returns None, or a message if writing failed. After a
    failure, earlier checkpoints are unchanged and the run can continue.

    tensors: those of the callbacks of rank 0.
    about: settings and versions for the manifest.
    """
    engine_tensors = engine.state()
    parts: list[Any] = [None] * engine.world_size
    dist.all_gather_object(parts, (state, torch.get_rng_state()))

    outcome: list[str | None] = [None]
    if engine.rank == 0:
        files = {
            "engine": engine_tensors,
            "rng": {f"rank-{rank}": numbers for rank, (_, numbers) in enumerate(parts)},
        }
        if tensors:
            files["callbacks"] = tensors
        content = {
            "format": FORMAT,
            "step": step,
            "world_size": engine.world_size,
            "states": [own for own, _ in parts],
        } | (about or {})
        try:
            _write(folder, step, files, content, keep)
        except (OSError, SafetensorError) as error:
            outcome = [_reason(error, folder)]
            # frees space on a full disk
            shutil.rmtree(_temporary(folder, step), ignore_errors=True)
    if engine.world_size > 1:
        dist.broadcast_object_list(outcome, 0)
    return outcome[0]


def _write(
    folder: Path, step: int, files: dict[str, dict[str, Tensor]], content: dict[str, Any], keep: int
) -> None:
    temporary = _temporary(folder, step)
    final = folder / f"step-{step:08d}"
    for stale in folder.glob(".tmp-step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)

    for name, tensors in files.items():
        save_file(tensors, temporary / f"{name}.safetensors")
    content["files"] = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
    content = sealed(content)
    # the files must reach the disk before the manifest, which declares them complete
    _sync(temporary)
    write_atomically(temporary / "manifest.json", json.dumps(content, indent=1))
    # safetensors makes its files readable only by their owner, whatever the umask allows
    for name in files:
        shutil.copymode(temporary / "manifest.json", temporary / f"{name}.safetensors")

    if problem_of(final) is None:
        # A resumed run that took no step saves the same checkpoint again. Replacing an intact
        # checkpoint would leave a moment without one.
        shutil.rmtree(temporary)
    else:
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    write_atomically(folder / "latest", final.name)
    _prune(folder, keep)


def _prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` intact checkpoints, and any damaged newer ones."""
    # Comparing sizes is enough here. Hashing every checkpoint at every save would cost more than
    # the save itself, and the newest one has just been written.
    whole = [
        path for path in sorted(folder.glob("step-*")) if problem_of(path, hashed=False) is None
    ]
    for path in folder.glob("step-*"):
        if path not in whole[-keep:] and path < whole[-1]:
            shutil.rmtree(path)


@dataclass
class Found:
    """An intact checkpoint of the current format that is not loaded yet."""

    path: Path
    manifest: dict[str, Any]

    skipped: list[str]
    """Newer, damaged checkpoints with reasons."""


def find_checkpoint(folder: Path) -> Found:
    """Find the newest intact checkpoint. All ranks must call this together and get the same one.

    Raises NoCheckpointError if none is intact, and ResumeError for one of another format.
    """
    # rank 0 chooses, because ranks may see different states of a shared file system
    choice: list[tuple[str, list[str]]] = [("", [])]
    if _rank() == 0:
        choice = [choose_checkpoint(folder)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(choice, 0)
    name, skipped = choice[0]
    if not name:
        raise NoCheckpointError(folder, skipped)

    path = folder / name
    manifest = read_manifest(path)
    _check_format(manifest, path)
    return Found(path, manifest, skipped)


def load_checkpoint(folder: Path, engine: Engine) -> Loaded:
    """Load the newest intact checkpoint, on any number of ranks.

    Random number generators are restored only if the number of ranks is the same. Raises
    NoCheckpointError if no checkpoint is intact, and ResumeError for one of another format.
    """
    return load_found(find_checkpoint(folder), engine)


class Loadable(Protocol):
    """The part of an engine that loading needs."""

    rank: int
    world_size: int

    def load_state(self, state: dict[str, Tensor]) -> None: ...


def load_found(found: Found, engine: Loadable) -> Loaded:
    """Load a checkpoint into the engine. Raises ResumeError if its tensors do not fit."""
    manifest = found.manifest
    engine.load_state(load_file(found.path / "engine.safetensors"))
    rng = load_file(found.path / "rng.safetensors")
    if manifest["world_size"] == engine.world_size:
        torch.set_rng_state(rng[f"rank-{engine.rank}"])

    tensors = {}
    # only files that the manifest lists have been hashed
    if "callbacks.safetensors" in manifest["files"]:
        tensors = load_file(found.path / "callbacks.safetensors")
    return Loaded(manifest["step"], manifest["states"], tensors, manifest, found.skipped)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _check_format(manifest: dict[str, Any], path: Path) -> None:
    if manifest.get("format") != FORMAT:
        version = manifest.get("versions", {}).get("evenfield", "another version")
        raise ResumeError(
            f"was saved by evenfield {version}, whose checkpoints have another format",
            remedy="finish the run with the version that began it, or start a new run in another "
            "folder",
            file=path,
        )


def choose_checkpoint(folder: Path) -> tuple[str, list[str]]:
    """The name of the newest intact checkpoint, or "", and newer, damaged ones with reasons."""
    if folder.is_dir():
        # glob treats an unreadable folder as empty, and a run would then start from scratch
        with file_errors(folder):
            list(folder.iterdir())
    unfinished = sorted(folder.glob(".tmp-step-*"), reverse=True)
    skipped = [f"{path.name} (unfinished save)" for path in unfinished]
    for path in sorted(folder.glob("step-*"), reverse=True):
        _refuse_forbidden(path)
        problem = problem_of(path)
        if problem is None:
            return path.name, skipped
        skipped.append(f"{path.name} ({problem})")
    return "", skipped


def _refuse_forbidden(path: Path) -> None:
    """Raise FileError for a checkpoint that this user may not read. It may well be intact."""
    with file_errors(path):
        inside = sorted(path.iterdir()) if path.is_dir() else []
    for file in inside:
        if not os.access(file, os.R_OK):
            raise FileError(
                "you may not read it",
                file=file,
                remedy="ask its owner for the right to read it, or name another run folder",
            )


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints whose files all match their manifest, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if problem_of(path) is None]


def problem_of(path: Path, *, hashed: bool = True) -> str | None:
    """The reason why a checkpoint cannot be used, or None if it is intact.

    hashed: read and hash all files; otherwise only their sizes are compared.

    A checkpoint of an older format counts as intact, because loading it gives a better message.
    """
    try:
        manifest = read_manifest(path)
        if is_of_older_format(manifest):
            return None
        if manifest[SEAL] != digest_of(manifest):
            return "manifest.json is garbled"
        named = path.name.removeprefix("step-")
        if named.isdigit() and int(named) != manifest["step"]:
            # a copy under another name would make a run skip steps
            return f"it is the checkpoint of step {manifest['step']}, under another name"
        for name, stated in manifest["files"].items():
            problem = _problem_of_file(path / name, stated, hashed=hashed)
            if problem is not None:
                return problem
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        # a damaged manifest can cause any of these
        return "manifest.json is garbled"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint, without checks."""
    return json.loads((path / "manifest.json").read_text())


def is_of_older_format(manifest: dict[str, Any]) -> bool:
    """Whether a manifest predates checksums. A flipped bit must not make it look so."""
    return SEAL not in manifest and manifest.get("format") != FORMAT and "files" in manifest


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size and hash of a file, read back after writing."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, HASH).hexdigest()
    return {"bytes": path.stat().st_size, HASH: digest}


def _problem_of_file(path: Path, stated: dict[str, Any], *, hashed: bool) -> str | None:
    size = path.stat().st_size
    if size != stated["bytes"]:
        return f"{path.name} has {size} of {stated['bytes']} bytes"
    if hashed and _fingerprint(path) != stated:
        return f"{path.name} is damaged: its bytes are not those that were saved"
    return None


def _temporary(folder: Path, step: int) -> Path:
    return folder / f".tmp-step-{step:08d}"


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or folder}: {error.strerror}"
    return f"{folder}: {error}"


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def seed_everything(seed: int) -> None:
    """Seed the global random number generators of torch and NumPy."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that use the global generator
