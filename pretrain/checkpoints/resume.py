"""Resume a run: choose the checkpoint, and check changed settings and data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from ...core.level_names import refuse_other_spelling
from ...core.rich_console import Console
from ...data_pipelines.stream.collection import Collection
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.level_fit import misfits, swapped
from ...model_zoo.potential.potential import Potential
from ..config import RESUME_RULES, PretrainConfig, resume_rules
from ..errors import NoCheckpointError, ResumeError
from ..loop.engine import Engine
from ..loop.schedule import Schedule
from ..start_from import how_to_rename
from .checkpoints import Found, Loaded, find_checkpoint, load_found
from .new_heads import WithNewHeads
from .run_data import KeptHeads, RunData
from .run_folder import Resume, how_to_go_on_without_checkpoint


# larger relative changes of a learning rate or weight are reported
NOTABLE = 0.01
# the value of a setting that one of two configs lacks
NOT_SET = "not set"


@dataclass(frozen=True)
class Continuation:
    """The checkpoint that a run continues from, already checked against settings and data."""

    found: Found
    kept: KeptHeads
    same_data: bool

    @property
    def step(self) -> int:
        return self.found.manifest["step"]

    @property
    def data_before(self) -> RunData:
        """The data of the run at the time of the checkpoint."""
        return RunData.from_dict(self.found.manifest["data"])

    @property
    def start(self) -> dict[str, Any] | None:
        """The record of the model that the run started from, or None."""
        return self.found.manifest.get("start")


def look_for_run(
    config: PretrainConfig,
    data: Collection,
    resume: Resume,
    console: Console,
    *,
    changed_data: bool = False,
) -> Continuation | None:
    """Find the checkpoint to resume from, as `resume` demands; None for a new run.

    All ranks must call this. Nothing is changed. Differences from the checkpoint are printed.

    changed_data: whether the user allows data that have changed.

    Raises NoCheckpointError if a checkpoint is required but missing, and ResumeError if it does not
    fit the settings or the data.
    """
    if resume == "no":
        return None
    folder = Path(config.out) / "checkpoints"
    try:
        found = find_checkpoint(folder)
    except NoCheckpointError as error:
        if resume == "must":
            error.remedy = how_to_go_on_without_checkpoint(Path(config.out))
            raise
        skipped = f"; skipped {', '.join(error.skipped)}" if error.skipped else ""
        console.print(f"no checkpoint to resume from, starts a new run{skipped}")
        return None

    manifest = found.manifest
    check_settings(manifest, config, folder)
    before = RunData.from_dict(manifest["data"])
    now = RunData.of(data)
    same_data = now.contents == before.contents
    if now.physics != before.physics:
        raise ResumeError(
            f"data={data} has labels minus other physics than the data that the run began with",
            remedy="convert the source with the settings of physics of the run, or start a new run "
            "in another folder",
            file=folder,
        )
    if not same_data:
        _check_changed_data(before, now, data, folder, allowed=changed_data)

    console.print(f"resumes from {found.path}")
    for skipped in found.skipped:
        console.print(f"skipped {skipped}")
    changed = changes(manifest["config"], config.saved())
    if changed:
        console.print(f"settings that changed: {', '.join(map(str, changed))}")
        for note in jumps(manifest, config):
            console.print(note)
    if not same_data:
        console.print(
            f"data that changed: {now.difference_from(before)}. Known heads, their E0 and the "
            "normalisation are those of the run; new heads and elements start from the new data, "
            "and the stream from its beginning",
        )
        for note in before.known_in(data):
            console.print(note)
    return Continuation(found, KeptHeads.from_dict(manifest["model"]), same_data)


def take_up(
    continuation: Continuation, engine: Engine, potential: Potential, run_data: RunData
) -> Loaded:
    """Load a checkpoint into the engine. The potential must be built with `continuation.kept`.

    Heads that the checkpoint lacks keep their initial values, and so do the E0 of elements that are
    new at their level of theory. `run_data` are the data from which these E0 were derived.

    Raises ResumeError if the tensors do not fit.
    """
    kept = continuation.kept
    fresh_e0 = potential.e0.detach().clone()
    if continuation.same_data:
        return load_found(continuation.found, engine)

    loaded = load_found(continuation.found, WithNewHeads(engine, len(kept.elements)))
    for head, (level, known) in enumerate(kept.elements.items()):
        for symbol in run_data.elements[level]:
            if symbol not in known:
                z = atomic_numbers[symbol]
                potential.e0[head, z] = fresh_e0[head, z]
    return loaded


def notes_on_levels(
    continuation: Continuation, potential: Potential, structures: list[Structure]
) -> list[str]:
    """Warnings about levels of theory in changed data, to be called after `take_up`.

    The energies of `structures` from these data are compared with the heads of the checkpoint.

    Raises ResumeError if the names of levels look swapped.
    """
    found = misfits(potential, structures, continuation.kept.elements)
    names = swapped(found)
    if names:
        details = "; ".join(str(misfit) for misfit in found if misfit.level in names)
        raise ResumeError(
            f"the names of the levels of theory {', '.join(names)} look swapped in the data: "
            f"{details}",
            remedy="convert the data again with the names of the run, or start a new run in "
            "another folder",
            file=continuation.found.path,
        )
    return [f"warning: {misfit}; is this the level of theory of the run?" for misfit in found]


@dataclass(frozen=True)
class Change:
    """A setting that differs between a checkpoint and the run that resumes from it."""

    key: str
    old: object
    new: object

    def __str__(self) -> str:
        return f"{self.key} {self.old} -> {self.new}"

    def how_to_undo(self) -> str:
        """What to type to restore the old value, as YAML."""
        if self.old == NOT_SET:
            return f"leave {self.key} out"
        value = self.old if isinstance(self.old, str) else json.dumps(self.old)
        return f"set {self.key}={value}"

    def is_off(self) -> bool:
        """Whether the old value means that the setting was switched off."""
        return not self.old


def check_settings(manifest: dict[str, Any], config: PretrainConfig, folder: Path) -> None:
    """Raise ResumeError for a changed setting that a resumed run cannot apply."""
    done = manifest["step"]
    if config.max_steps < done:
        # otherwise the model's record would state fewer steps than were made
        raise ResumeError(
            f"max_steps={config.max_steps} is less than the {done} steps that the run has made",
            remedy=f"set max_steps={done} for the model as it is now, or more to go on",
            file=folder,
        )
    rules = resume_rules()
    for change in changes(manifest["config"], config.saved()):
        rule = _rule_of(change.key, rules)
        if rule == "applied" or (rule == "not_from_off" and not change.is_off()):
            continue
        raise ResumeError(
            f"{change.key} cannot change from {change.old} to {change.new} in a resumed run: it "
            f"{RESUME_RULES[rule]}",
            remedy=f"{change.how_to_undo()}, or start a new run in another folder",
            file=folder,
        )


def _check_changed_data(
    before: RunData, now: RunData, data: Collection, folder: Path, *, allowed: bool
) -> None:
    """Raise ResumeError unless the run may continue with changed data."""
    refuse_other_spelling(
        now.elements,
        before.elements,
        ResumeError,
        owner="the run",
        file=str(data),
        remedy=how_to_rename,
    )
    gone = before.missing_in(now)
    # a new level may legitimately start with the structures of an old one
    renamed = [level for level in now.taken_from(before) if level in before.elements]
    if renamed:
        remedy = "convert the data with the names of the run, or start a new run in another folder"
    elif gone:
        # A renamed level counts as another level, because only the user can know that it is the
        # same.
        remedy = "name data that have them, or start a new run in another folder"
    elif allowed:
        return
    else:
        remedy = (
            "name the data sets that the run began with, continue on these with --changed-data, "
            "or start a new run in another folder"
        )
    raise ResumeError(
        f"data={data} is not the data of the run: {now.difference_from(before)}",
        remedy=remedy,
        file=folder,
    )


def jumps(manifest: dict[str, Any], config: PretrainConfig) -> list[str]:
    """Notes on quantities that jump at the next step because they depend on `max_steps`."""
    step = manifest["step"]
    before = PretrainConfig.model_validate({"data": "", "out": ""} | manifest["config"])
    old_rate = _learning_rate(before, step)
    new_rate = _learning_rate(config, step)
    notes = []
    if abs(new_rate - old_rate) > NOTABLE * old_rate:
        notes.append(
            f"the learning rate of step {step + 1} is {new_rate:.2g} instead of {old_rate:.2g}, "
            f"because max_steps or the schedule changed; optimizer.learning_rate scales it"
        )

    old_weight = before.loss.at(min(1.0, step / before.max_steps)).energy
    new_weight = config.loss.at(step / config.max_steps).energy
    if abs(new_weight - old_weight) > NOTABLE * old_weight:
        notes.append(
            f"the weight of the energy in step {step + 1} is {new_weight:.3g} instead of "
            f"{old_weight:.3g}"
        )
    return notes


def _learning_rate(config: PretrainConfig, step: int) -> float:
    schedule = Schedule(config.optimizer.learning_rate, config.schedule)
    return schedule.at(step, config.max_steps)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[Change]:
    """Every setting that differs between two saved configs.

    A setting that is missing in the older config counts as having its default value.
    """
    defaults = _flat(PretrainConfig(data="", out="").saved())
    new = _flat(now)
    old = {key: defaults[key] for key in new if key in defaults} | _flat(before)
    keys = [*old, *(key for key in new if key not in old)]
    found = [Change(key, old.get(key, NOT_SET), new.get(key, NOT_SET)) for key in keys]
    return [change for change in found if change.old != change.new]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree to values by full key; empty sections are left out."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _rule_of(key: str, rules: dict[str, str]) -> str:
    """The rule of a setting, or of the section that contains it."""
    while key not in rules:
        key, dot, _ = key.rpartition(".")
        assert dot, f"no rule for {key}"
    return rules[key]
