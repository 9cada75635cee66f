"""Checkpoints that a kill at any instant cannot tear: temporary name, manifest, rename, then `latest`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field

from ..data_pipelines.settings import Settings
from ..data_pipelines.shards import write_atomically
from .engine import Engine


class CheckpointConfig(Settings):
    """How often a run is saved and how many checkpoints are kept."""

    every: int = Field(default=200, gt=0, description="steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept")


class NoCheckpointError(ValueError):
    """There is nothing to resume from; the message says what was looked at."""


def save_checkpoint(folder: Path, step: int, engine: Engine, state: dict[str, Any], keep: int) -> Path:
    """Save engine, trainer state and RNG of every rank as `folder`/step-N; all ranks call it together."""
    temporary, final = folder / f".tmp-step-{step:08d}", folder / f"step-{step:08d}"
    if engine.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    engine.save(temporary)
    states: list[Any] = [None] * engine.world_size
    dist.all_gather_object(states, state)
    torch.save({"torch": torch.get_rng_state()}, temporary / f"rng-{engine.rank}.pt")
    dist.barrier()
    if engine.rank == 0:
        content = {"step": step, "world_size": engine.world_size, "states": states}
        content["files"] = {str(f.relative_to(temporary)): f.stat().st_size for f in _files(temporary)}
        _sync(temporary)
        write_atomically(temporary / "manifest.json", json.dumps(content, indent=1))
        if _is_whole(final):  # of a resumed run that took no step: to replace it would be to be without it
            shutil.rmtree(temporary)
        else:
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        write_atomically(folder / "latest", final.name)
        for old in whole_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load_checkpoint(folder: Path, engine: Engine) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest whole checkpoint; returns its step and the trainer states of all ranks.

    On the ranks' own number the continuation is exact.  Weights of stage 0 also load on another number.
    """
    whole = whole_checkpoints(folder)
    if not whole:
        torn = sorted(p.name for p in folder.glob("*step-*")) if folder.is_dir() else []
        looked = f"; not whole: {', '.join(torn)}" if torn else ""
        raise NoCheckpointError(f"{folder}: no checkpoint to resume from{looked}. Start without --resume")
    newest = whole[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    engine.load(newest)
    own_rng = newest / f"rng-{engine.rank}.pt"
    if own_rng.is_file():
        torch.set_rng_state(torch.load(own_rng, weights_only=True)["torch"])
    return manifest["step"], manifest["states"]


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints whose manifest is there and whose files all have the size that it states, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def seed_everything(seed: int) -> None:
    """Seed torch and numpy's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that use the global generator
