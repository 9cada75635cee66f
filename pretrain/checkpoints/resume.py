"""Resuming a run: from which checkpoint, with which changed settings, and as its only writer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ...core.locks import LockedError, held
from ...data_pipelines.stream.collection import Collection
from ..config import RESUME_RULES, PretrainConfig, resume_rules
from ..errors import NoCheckpointError, ResumeError
from ..loop.engine import Engine
from .checkpoints import Loaded, choose_checkpoint, load_checkpoint


Resume = Literal["no", "auto", "must"]


def take_up(
    config: PretrainConfig, data: Collection, resume: Resume, engine: Engine, console: Console
) -> Loaded | None:
    """Load the newest whole checkpoint of the run folder as `resume` says; None for a fresh start.

    Raises NoCheckpointError when there must be one, and ResumeError when it does not fit the
    settings. Changed settings that the resumed run applies are printed.
    """
    if resume == "no":
        return None
    folder = Path(config.out) / "checkpoints"
    try:
        loaded = load_checkpoint(
            folder, engine, lambda manifest: check_manifest(manifest, config, data, folder)
        )
    except NoCheckpointError as error:
        if resume == "must":
            raise
        skipped = f"; skipped {', '.join(error.skipped)}" if error.skipped else ""
        console.print(f"no checkpoint to resume from, starts a new run{skipped}", markup=False)
        return None

    console.print(f"resumes from {folder / f'step-{loaded.step:08d}'}", markup=False)
    for skipped in loaded.skipped:
        console.print(f"skipped {skipped}", markup=False)
    changed = changes(loaded.manifest["config"], config.saved())
    if changed:
        console.print(f"settings that changed: {', '.join(map(str, changed))}", markup=False)
    return loaded


def refuse_second_run(out: Path) -> None:
    """Raise ResumeError if the folder already holds a run.

    Pruning would keep the old run's checkpoints and delete those of the new one.
    """
    name, _ = choose_checkpoint(out / "checkpoints")
    if name:
        raise ResumeError(
            f"already holds a run, saved at {name}",
            remedy="add --resume auto to continue it, or name another folder",
            file=out,
        )


def sole_writer(out: Path) -> AbstractContextManager[None]:
    """Hold the run folder against other processes, such as a rank that outlived its launcher."""
    refusal = LockedError(
        "another process trains into this folder",
        remedy="end it first, or name another folder",
        file=out,
    )
    return held(out / ".lock", refusal)


@dataclass(frozen=True)
class Change:
    """A setting that differs between a checkpoint and the run that resumes from it."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key} {self.old} -> {self.new}"

    def is_off(self) -> bool:
        """Whether the old value means that the setting was switched off."""
        return not self.old


def check_manifest(
    manifest: dict[str, Any], config: PretrainConfig, data: Collection, folder: Path
) -> None:
    """Raise ResumeError for a changed setting that a resume cannot apply.

    It is called before anything is changed.
    """
    rules = resume_rules()
    for change in changes(manifest["config"], config.saved()):
        rule = _rule_of(change.key, rules)
        if rule == "applied" or (rule == "not_from_off" and not change.is_off()):
            continue
        raise ResumeError(
            f"{change.key} cannot change from {change.old} to {change.new} in a resumed run: it "
            f"{RESUME_RULES[rule]}",
            remedy=f"set {change.key}={change.old}, or start a new run in another folder",
            file=folder,
        )
    if manifest["data"] != fingerprint(data):
        raise ResumeError(
            f"data={data} is not the data of the run: its sets differ in number, source or size",
            remedy="name the data sets that the run began with, or start a new run in another "
            "folder",
            file=folder,
        )


def fingerprint(data: Collection) -> list[dict[str, Any]]:
    """What must be the same in the data of a resumed run; paths may differ."""
    sets = [
        {"sha256": info["source"]["sha256"], "num_structures": info["num_structures"]}
        for info in data.infos
    ]
    return sorted(sets, key=str)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Every setting that differs between two saved configs.

    A setting that the older config does not have yet had its default value.
    """
    defaults = _flat(PretrainConfig(data="", out="").saved())
    new = _flat(now)
    old = {key: defaults[key] for key in new if key in defaults} | _flat(before)
    keys = [*old, *(key for key in new if key not in old)]
    found = [Change(key, old.get(key, "not set"), new.get(key, "not set")) for key in keys]
    return [change for change in found if change.old != change.new]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by full key; an empty section is no key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _rule_of(key: str, rules: dict[str, str]) -> str:
    """The rule of a setting, or that of the section that it lies in."""
    while key not in rules:
        key, dot, _ = key.rpartition(".")
        assert dot, f"no rule for {key}"
    return rules[key]
