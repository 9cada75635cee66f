"""Going on with a run: which checkpoint, with what changed settings, and that nobody else writes into its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ...core.locks import LockedError, held
from ..config import PretrainConfig
from ..loop.engine import Engine
from .checkpoints import Loaded, NoCheckpointError, choose_checkpoint, load_checkpoint


Resume = Literal["no", "auto", "must"]


def take_up(
    config: PretrainConfig, resume: Resume, engine: Engine, console: Console
) -> Loaded | None:
    """Load the newest whole checkpoint of the run folder as `resume` says; None for a fresh start.

    Raises NoCheckpointError when there must be one, ValueError when it belongs to another model.
    """
    folder = Path(config.out) / "checkpoints"
    if resume == "no":
        return None
    try:
        loaded = load_checkpoint(folder, engine, lambda saved: _check_saved(saved, config, folder))
    except NoCheckpointError as error:
        if resume == "must":
            raise
        looked = str(error).partition("; not whole: ")[2].removesuffix(". Start without --resume")
        console.print(
            "nothing to resume, starts anew" + (f"; skipped {looked}" if looked else ""),
            markup=False,
        )
        return None
    console.print(f"goes on from {folder / f'step-{loaded.step:08d}'}", markup=False)
    for skipped in loaded.skipped:
        console.print(f"skipped {skipped}", markup=False)
    if changed := _changed(loaded.config, config.model_dump(mode="json", exclude={"data", "out"})):
        console.print(f"settings that changed: {', '.join(changed)}", markup=False)
    return loaded


def refuse_second_run(out: Path) -> None:
    """ValueError if the folder holds a run: the pruning would keep its checkpoints and delete the new ones."""
    name, _ = choose_checkpoint(out / "checkpoints")
    if name:
        raise ValueError(
            f"{out}: holds a run saved at {name}: add --resume auto to go on, or name another folder"
        )


def sole_writer(out: Path) -> AbstractContextManager[None]:
    """Hold the run folder; LockedError if another process does, such as a rank that outlived its launcher."""
    return held(
        out / ".lock",
        LockedError(
            "another process trains into this folder",
            remedy="end it first, or name another folder",
            file=out,
        ),
    )


def _check_saved(saved: dict[str, Any], config: PretrainConfig, folder: Path) -> None:
    model = {"angular_factors": True} | saved.get("model", {})  # what the first ones had
    if changed := _changed(model, config.model.model_dump(mode="json"), "model."):
        raise ValueError(
            f"{folder}: was saved with another model ({', '.join(changed)}): set it so, or start a new run"
        )
    optimizer = saved.get("engine", {}).get("optimizer", "adamw")  # the only one there was
    if optimizer != config.engine.optimizer:
        raise ValueError(
            f"{folder}: was saved by engine.optimizer={optimizer}, whose state {config.engine.optimizer} cannot take "
            f"up: set engine.optimizer={optimizer}, or start a new run"
        )


def _changed(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """`key before -> now` for every setting that differs."""
    changed = []
    for key, value in now.items():
        if key not in before:
            continue
        if isinstance(value, dict) and isinstance(before[key], dict):
            changed += _changed(before[key], value, f"{prefix}{key}.")
        elif before[key] != value:
            changed.append(f"{prefix}{key} {before[key]} -> {value}")
    return changed
