"""Checkpoints that a kill at any instant cannot tear: temporary name, manifest, rename, then `latest`.

A checkpoint says nothing of ranks: engine.safetensors holds weights and optimizer state by name, manifest.json where
the stream stands; only the random numbers are one entry a rank. Loading one runs no pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...core.files import write_atomically
from ...core.settings import Settings
from ..loop.engine import Engine


class CheckpointConfig(Settings):
    """How often a run is saved and how many checkpoints are kept."""

    every: int = Field(default=200, gt=0, description="steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept")


class NoCheckpointError(ValueError):
    """There is nothing to resume from; the message says what was looked at."""


@dataclass
class Loaded:
    """A checkpoint that was taken up; the engine holds its part already."""

    step: int
    states: list[dict[str, Any]]  # of the trainers of all ranks
    average: dict[str, Tensor]  # of the weights, empty if the run kept none
    config: dict[str, Any]  # of the run that saved it
    skipped: list[str]  # newer checkpoints, and why each is not whole


def save_checkpoint(
    folder: Path,
    step: int,
    engine: Engine,
    state: dict[str, Any],
    keep: int,
    average: dict[str, Tensor] | None = None,
    about: dict[str, Any] | None = None,
) -> str | None:
    """Save engine, trainer states and random numbers of all ranks as `folder`/step-N; all ranks call it together.

    Returns None, or what went wrong on the disk: then the checkpoints before are as they were, and the run can go on.
    average: of the weights, which rank 0 holds.  about: config and versions, into the manifest.
    """
    tensors = engine.state()
    parts: list[Any] = [None] * engine.world_size
    dist.all_gather_object(parts, (state, torch.get_rng_state()))
    outcome: list[str | None] = [None]
    if engine.rank == 0:
        rng = {f"rank-{rank}": numbers for rank, (_, numbers) in enumerate(parts)}
        files = {"engine": tensors, "rng": rng} | ({"average": average} if average else {})
        content = {
            "step": step,
            "world_size": engine.world_size,
            "states": [own for own, _ in parts],
        } | (about or {})
        try:
            _write(folder, step, files, content, keep)
        except (OSError, SafetensorError) as error:
            outcome = [_reason(error, folder)]
            shutil.rmtree(
                _temporary(folder, step), ignore_errors=True
            )  # a full disk needs the room
    if engine.world_size > 1:
        dist.broadcast_object_list(outcome, 0)
    return outcome[0]


def _write(
    folder: Path, step: int, files: dict[str, dict[str, Tensor]], content: dict[str, Any], keep: int
) -> None:
    temporary, final = _temporary(folder, step), folder / f"step-{step:08d}"
    for stale in folder.glob(".tmp-step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, tensors in files.items():
        save_file(tensors, temporary / f"{name}.safetensors")
    content["files"] = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    _sync(temporary)
    write_atomically(temporary / "manifest.json", json.dumps(content, indent=1))
    if (
        problem_of(final) is None
    ):  # of a resumed run that took no step: to replace it would be to be without it
        shutil.rmtree(temporary)
    else:
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    write_atomically(folder / "latest", final.name)
    _prune(folder, keep)


def _prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` whole ones, and torn ones that are older than the newest."""
    whole = whole_checkpoints(folder)
    for path in folder.glob("step-*"):
        if path not in whole[-keep:] and path < whole[-1]:
            shutil.rmtree(path)


def load_checkpoint(
    folder: Path, engine: Engine, check: Callable[[dict[str, Any]], None] = lambda config: None
) -> Loaded:
    """Load the newest whole checkpoint, on any number of ranks; on the same number the continuation is exact.

    check: called with the config of the run that saved it, before anything is changed.
    Rank 0 chooses: ranks whose view of a shared file system differs must not go on from different steps.
    """
    choice: list[tuple[str, list[str]]] = [("", [])]
    if engine.rank == 0:
        choice = [choose_checkpoint(folder)]
    if engine.world_size > 1:
        dist.broadcast_object_list(choice, 0)
    name, skipped = choice[0]
    if not name:
        looked = f"; not whole: {', '.join(skipped)}" if skipped else ""
        raise NoCheckpointError(
            f"{folder}: no checkpoint to resume from{looked}. Start without --resume"
        )
    newest = folder / name
    manifest = json.loads((newest / "manifest.json").read_text())
    check(manifest.get("config", {}))
    engine.load_state(load_file(newest / "engine.safetensors"))
    rng = load_file(newest / "rng.safetensors")
    if manifest["world_size"] == engine.world_size:
        torch.set_rng_state(rng[f"rank-{engine.rank}"])
    average = newest / "average.safetensors"
    own_average = load_file(average) if average.is_file() else {}
    return Loaded(
        manifest["step"], manifest["states"], own_average, manifest.get("config", {}), skipped
    )


def choose_checkpoint(folder: Path) -> tuple[str, list[str]]:
    """Name of the newest whole checkpoint, empty if there is none; and the newer ones that are not, with the reason."""
    skipped = [
        f"{path.name} (a save that did not end)"
        for path in sorted(folder.glob(".tmp-step-*"), reverse=True)
    ]
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = problem_of(path)
        if problem is None:
            return path.name, skipped
        skipped.append(f"{path.name} ({problem})")
    return "", skipped


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints whose manifest is there and whose files all have the size that it states, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if problem_of(path) is None]


def problem_of(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is whole."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
        for name, size in files.items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} of {size} bytes"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, AttributeError):
        return "manifest.json is garbled"
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
    """Seed torch and numpy's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that use the global generator
