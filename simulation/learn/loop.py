"""The loop from exploring to a model that knows what it met. Begin with `learn` and `_Loop.run`.

Every step writes one file, and follows from the files before it. So after any interruption the same
call goes on, and ends with the same model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from rich.progress import Progress

from ...core.code_identity import code_identity
from ...core.destination import (
    DestinationError,
    check_changeable,
    check_destination,
    contents,
    replace_folder,
)
from ...core.errors import EvenfieldError
from ...core.files import copy_folder
from ...core.locks import LockedError, held
from ...core.settings import SettingsError
from ...data_pipelines.convert.convert import ConvertConfig, write_data_set
from ...data_pipelines.demo.oracles import RejectedStructure
from ...data_pipelines.enrich.enrich import refuse_bad
from ...data_pipelines.enrich.label_oracles import check_oracle
from ...data_pipelines.physics.residual import each_without_physics
from ...data_pipelines.structure import Structure
from ...finetune.safety.uncertainty import atom_features, observe
from ...model_zoo.hub.load import LoadedModel, load
from . import store
from .array_job import check_options
from .choose import by_determinant, by_distance
from .config import LearnConfig
from .explore import Frame, Walk, barostat, first_walks, walk_on
from .fit import fit
from .labeller import LabellingError
from .labelling import Label, labels_of
from .page import heads_in_words, strategy_in_words, write_report
from .pictures import Surprise
from .stall import stall_of


REQUEST = "learn.json"
ROUNDS = "rounds"
ROUND = "round.json"
LEARNED = "learned.json"
# settings that may change when a loop goes on: what it may spend, and where labels are computed
BUDGET = ("labels", "minutes", "timeout", "slurm")
# Conditions of stopped simulations that the line about a round names.
MOST_NAMED = 4
# Attempts at a rattled copy in which no atoms collide.
MAX_ATTEMPTS = 20

# why a loop has ended
SPENT = "the labels are spent"
QUIET = "nothing was flagged any more"
LATE = "the time is spent"
STUCK = "no structure was left to label"


class LearnError(EvenfieldError):
    """A loop that cannot begin or go on."""


@dataclass(frozen=True)
class Learned:
    """What a loop has led to."""

    model: Path | None
    """None where nothing was learned."""
    data: Path | None
    page: Path
    ended: str
    """Why it ended, in words."""
    rounds: list[dict[str, Any]]
    """The content of each round.json."""


def learn(
    base: LoadedModel,
    structures: Sequence[Atoms],
    out: Path,
    config: LearnConfig,
    *,
    inputs: Sequence[Path | str] = (),
    say: Callable[[str], object] = print,
) -> Learned:
    """Explore, choose, label, refit and calibrate, until the budget is spent or all is quiet.

    Writes the folder `out`: `model`, `data` (a data set of all labels), `report.html` and the state
    of the loop. The same call goes on with what is there, also with a larger budget.

    inputs: files and folders that the caller has read; `out` must be none of them.
    say: is told a line about each round.

    Raises DestinationError if `out` holds something else, SettingsError and LearnError for what
    cannot work, LabellingError if no label can be had, and LockedError if another process works
    there.
    """
    _check(base, structures, config)
    check_oracle(config.oracle, config.oracle_settings)
    request = {
        "model": base.reference,
        "structures": store.digest(store.as_json(atoms) for atoms in structures),
        "settings": config.model_dump(mode="json", exclude=set(BUDGET)),
        # the calculator of this name may have changed, and its labels would not fit the old ones
        "oracle_code": code_identity(config.oracle, config.oracle_settings),
    }
    _check_place(out, request, inputs)
    refusal = LockedError("another process learns here", file=out)
    with held(out / ".lock", refusal):
        if not (out / REQUEST).exists():
            store.write(out / REQUEST, request)
        return _Loop(base, list(structures), out, config, say).run()


def _check(base: LoadedModel, structures: Sequence[Atoms], config: LearnConfig) -> None:
    """Raise SettingsError for settings that cannot work, before any label is asked for."""
    low, high = config.initial_rattle
    if not 0 <= low <= high:
        raise SettingsError(
            f"initial_rattle={list(config.initial_rattle)}: a lower and an upper bound"
        )
    if not config.guard.has_rules:
        raise SettingsError(
            "a loop without a rule of the guard never stops a simulation",
            remedy="set guard.force_radius",
        )
    if config.slurm is not None:
        check_options(config.slurm)
    if config.pressures:
        barostat()
    if config.pressures and not any(atoms.pbc.all() for atoms in structures):
        raise SettingsError(
            f"pressures={config.pressures}: no structure is periodic in all three directions, so "
            "that none has a volume",
            remedy="leave pressures out",
        )
    if config.initial:
        labelled = {z for atoms in structures[: config.initial] for z in atoms.numbers.tolist()}
        present = {z for atoms in structures for z in atoms.numbers.tolist()}
        missing = ", ".join(chemical_symbols[z] for z in sorted(present - labelled))
        if missing:
            raise SettingsError(
                f"initial={config.initial}: no first label has {missing}",
                remedy=f"set initial={len(structures)}, one for each structure",
            )
    elif config.level not in base.uncertainties:
        raise SettingsError(
            f"initial=0: {base.record.name} does not know how large its errors at {config.level} "
            "are",
            remedy="set initial=8, or name a level_of_theory with a record of its uncertainty",
        )


def _check_place(out: Path, request: dict[str, Any], inputs: Sequence[Path | str]) -> None:
    """Raise DestinationError for a folder that holds anything but this loop."""
    if not (out / REQUEST).is_file():
        # a process that was killed before it wrote anything may have left a lock
        found = contents(out)
        if found in (None, ".lock"):
            check_changeable(out)
        else:
            check_destination(out, inputs=inputs)
        return
    before = store.read(out / REQUEST, "restore it, or begin again in another OUT")
    if before != request and before | {"oracle_code": request["oracle_code"]} == request:
        raise DestinationError(
            "holds labels of another version of the oracle: its code has changed, or a script or "
            "weights that oracle_settings name",
            file=out,
            remedy="choose another OUT, or go back to that version",
        )
    if before != request:
        raise DestinationError(
            "holds a loop of another model, other structures or other settings",
            file=out,
            remedy=f"choose another OUT, or give the same; {', '.join(BUDGET)} may change",
        )


class _Loop:
    """The state of a loop between two rounds, and what a round does with it."""

    def __init__(
        self,
        base: LoadedModel,
        structures: list[Atoms],
        out: Path,
        config: LearnConfig,
        say: Callable[[str], object],
    ) -> None:
        self.base = base
        self.starts = structures
        """What the simulations begin with."""
        self.out = out
        self.config = config
        self.say = say
        self.model = base
        """The newest model, always as read from disk: that is all a loop that goes on has."""
        self.labels: list[Label] = []
        self.rounds: list[dict[str, Any]] = []
        self.walks = first_walks(structures, config)

    def run(self) -> Learned:
        """Read the rounds that are over, do those that are left, and write the results."""
        while True:
            number = len(self.rounds)
            folder = self.out / ROUNDS / f"{number:03d}"
            is_over = (folder / ROUND).exists()
            ended = None if is_over else self._why_ended()
            if ended is not None:
                break
            self._round(folder, number)
            if not is_over:
                self._write_page("under way")
        return self._finish(ended)

    @property
    def structures(self) -> list[Structure]:
        """All structures that have a label, in the order in which they were asked for."""
        return self._labelled(self.labels)

    def _labelled(self, labels: Sequence[Label]) -> list[Structure]:
        return [one.structure(self.config.level) for one in labels if one.failure is None]

    def _why_ended(self) -> str | None:
        """Why no further round begins; None where one does."""
        if not self.rounds:
            return None
        last = self.rounds[-1]
        if last["explored"] and not last["stopped"]:
            return QUIET
        if last["explored"] and not last["asked"]:
            return STUCK
        if len(self.labels) >= self.config.labels:
            return SPENT
        spent = sum(one["seconds"] for one in self.rounds)
        if self.config.minutes is not None and spent >= 60 * self.config.minutes:
            return LATE
        return None

    def _round(self, folder: Path, number: int) -> None:
        """Do one round, or what is left of it. A round that is over is only read.

        Each step finds out by its file whether it has been done.
        """
        began = time.monotonic()
        is_start = number == 0 and self.config.initial > 0
        is_over = (folder / ROUND).exists()
        interrupted = folder.exists()

        if not is_start:
            self._explore(folder, number)
        explored = time.monotonic()
        # chosen.json holds even if the budget was lowered since: nothing in it is asked for twice
        chosen = self._first(folder) if is_start else self._choose(folder, number)
        had_chosen = time.monotonic()
        new = self._label(folder, chosen)
        labelled = time.monotonic()
        self.labels += new

        if is_over:
            before = store.read(folder / ROUND)["before"]
        else:
            before = None if is_start else self._errors_before(new)
        if any(label.failure is None for label in new):
            if not self._model_in(folder).exists():
                self._learn(folder, number, before)
            self.model = load(self._model_in(folder))
        elif is_start:
            reasons = Counter(label.failure for label in new)
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            raise LabellingError(
                f"none of the {len(new)} first structures has a label ({listed})",
                file=folder,
                remedy="see the answers there, and begin again with another oracle or structures",
            )

        if not is_over:
            done = self._summary(number, is_start, new, before)
            facts = folder / LEARNED
            done["learned"] = store.read(facts) if facts.exists() else None
            now = time.monotonic()
            done["seconds"] = round(now - began, 2)
            done["seconds_exploring"] = round(explored - began, 2)
            done["seconds_choosing"] = round(had_chosen - explored, 2)
            done["seconds_labelling"] = round(labelled - had_chosen, 2)
            done["seconds_learning"] = round(now - labelled, 2)
            # how long the simulations stand still: from a trigger until they can go on
            has_learned = done["learned"] is not None
            done["seconds_to_next_model"] = round(now - explored, 2) if has_learned else None
            # if so, all times count from when it was started again
            done["interrupted"] = interrupted
            store.write(folder / ROUND, done)
            self.say(_in_words(done))
        self.rounds.append(store.read(folder / ROUND))

    def _summary(
        self, number: int, is_start: bool, new: list[Label], before: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The content of round.json, but for how it was learned and the times.

        before: errors on the new labels before they were learned.
        """
        failures = {label.name: label.failure for label in new if label.failure is not None}
        details = {label.name: label.detail for label in new if label.failure is not None}
        stopped = [] if is_start else [walk.stopped for walk in self.walks if walk.stopped]
        uncertainty = self.model.uncertainties.get(self.config.level)
        quantile = None
        if uncertainty is not None:
            quantile = float(uncertainty.force_quantiles(self.config.guard.coverage)[-1])
        return {
            "round": number,
            "explored": not is_start,
            "walks": 0 if is_start else len(self.walks),
            "over": 0 if is_start else sum(walk.is_over(self.config) for walk in self.walks),
            "stopped": stopped,
            "simulations": [] if is_start else [self._in_short(walk) for walk in self.walks],
            "picoseconds": sum(walk.steps for walk in self.walks) * self.config.time_step / 1000,
            "asked": len(new),
            "labels": len(self.labels),
            "failures": failures,
            "details": details,
            "before": before,
            # infinite with too few scores
            "quantile": quantile if quantile is not None and np.isfinite(quantile) else None,
            "radii": [] if is_start else self._radii(),
        }

    def _in_short(self, walk: Walk) -> dict[str, Any]:
        """Where a walk is, for the table of simulations on the page."""
        atoms = walk.state
        return {
            "structure": walk.structure,
            "formula": atoms.get_chemical_formula(),
            "conditions": walk.conditions,
            "picoseconds": walk.steps * self.config.time_step / 1000,
            "volume_per_atom": atoms.get_volume() / len(atoms) if atoms.pbc.all() else None,
            "stopped": None if walk.stopped is None else walk.stopped["text"],
        }

    def _radii(self) -> list[dict[str, Any]]:
        """The largest radius along each walk of this round, for its picture on the page."""
        return [
            {
                "conditions": walk.conditions,
                "ps": [frame.step * self.config.time_step / 1000 for frame in walk.frames],
                "radius": [frame.radius for frame in walk.frames],
            }
            for walk in self.walks
            if walk.frames
        ]

    def _model_in(self, folder: Path) -> Path:
        """Where a round puts its model. The name of the folder is that of the model."""
        return folder / "model" / self.out.resolve().name

    # --- the steps of a round

    def _first(self, folder: Path) -> list[Atoms]:
        """The structures of the first labels: rattled and strained copies of those given."""
        path = folder / "chosen.json"
        if not path.exists():
            number = min(self.config.initial, self.config.labels)
            frames = [self._rattled(index) for index in range(number)]
            store.write(path, {"atoms": [store.as_json(atoms) for atoms in frames]})
        return [store.from_json(one) for one in store.read(path)["atoms"]]

    def _rattled(self, index: int) -> Atoms:
        """The copy of this number, in which no atoms collide.

        Raises LearnError if atoms collide in each attempt.
        """
        start = self.starts[index % len(self.starts)]
        low, high = self.config.initial_rattle
        # from the lower to the upper bound over all copies
        share = index / max(self.config.initial - 1, 1)
        for attempt in range(MAX_ATTEMPTS):
            rng = np.random.default_rng([self.config.seed, index, attempt])
            atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc)
            if atoms.pbc.all():
                strain = rng.normal(0, self.config.initial_strain, (3, 3))
                # the antisymmetric part would only turn the crystal, which changes no label
                deformation = np.eye(3) + (strain + strain.T) / 2
                atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
            width = low + share * (high - low)
            atoms.positions += rng.normal(0, width, atoms.positions.shape)
            if _is_sane(atoms):
                return atoms
        raise LearnError(
            f"structure {index % len(self.starts)} collapses when it is rattled",
            remedy="lower initial_rattle, or look at the structure",
        )

    def _explore(self, folder: Path, number: int) -> None:
        """Let each walk go on that is not over."""
        with Progress(transient=True) as bar:
            task = bar.add_task(f"round {number}: exploring", total=self.config.steps)

            def show(steps: int) -> None:
                bar.update(task, completed=steps)

            for index, walk in enumerate(self.walks):
                path = folder / f"walk-{index:03d}.json"
                if not path.exists():
                    if walk.is_over(self.config):
                        walked = walk.at_rest()
                    else:
                        walked = self._walk_on(walk, index, number, show)
                    store.write(path, walked.to_json())
                self.walks[index] = Walk.from_json(store.read(path))

    def _walk_on(self, walk: Walk, index: int, number: int, show: Callable[[int], None]) -> Walk:
        """The walk with this index after the round with this number."""
        # A new one for each walk: neighbour lists of others could change the order of a sum, and
        # with it the last digits.
        calculator = self.model.calculator(
            level_of_theory=self.config.level,
            warn_outside=False,
            uncertainty=True,
            coverage=self.config.guard.coverage,
        )
        start = self.starts[walk.structure]
        return walk_on(walk, index, number, start, calculator, self.config, show)

    def _choose(self, folder: Path, number: int) -> list[Atoms]:
        """The structures to label, of those that the walks met."""
        path = folder / "chosen.json"
        if not path.exists():
            store.write(path, self._choice(number))
        return [store.from_json(one) for one in store.read(path)["atoms"]]

    def _choice(self, number: int) -> dict[str, Any]:
        """The content of chosen.json: the structures, and the score by which each was chosen."""
        was_stopped = any(walk.stopped for walk in self.walks)
        met = self._worth_asking() if was_stopped else []
        if not met:
            return {"atoms": [], "scores": []}
        most = min(self.config.batch, self.config.labels - len(self.labels))
        places, scores = self._places(met, most, number)
        return {"atoms": [store.as_json(met[place].atoms) for place in places], "scores": scores}

    def _places(self, met: list[Frame], most: int, number: int) -> tuple[list[int], list[float]]:
        """Places of the chosen frames, in the order of the choice, and their scores."""
        how = self.config.choose
        if how == "random":
            rng = np.random.default_rng([self.config.seed, number])
            places = rng.permutation(len(met))[:most].tolist()
            return places, [0.0] * len(places)
        if how == "committee":
            # an infinite disagreement, stored as None, comes first
            scored = [np.inf if one.disagreement is None else one.disagreement for one in met]
            places = np.argsort(-np.array(scored), kind="stable")[:most].tolist()
            return places, [met[place].disagreement or 0.0 for place in places]

        candidates = self._features([frame.atoms for frame in met])
        labelled = self._features([one.atoms for one in self.labels if one.failure is None])
        if how == "farthest":
            return by_distance(labelled, candidates, most)
        known = np.concatenate(labelled) if labelled else candidates[0][:0]
        return by_determinant(known, candidates, most)

    def _worth_asking(self) -> list[Frame]:
        """What the walks met in this round, each structure once, without those asked for before.

        A walk begins a round at the state before its stop, which may have a label by then.
        """
        known = {_identity(label.atoms) for label in self.labels}
        met: list[Frame] = []
        for frame in (frame for walk in self.walks for frame in walk.frames):
            identity = _identity(frame.atoms)
            if identity not in known and _is_sane(frame.atoms):
                known.add(identity)
                met.append(frame)
        return met

    def _features(self, frames: list[Atoms]) -> list[np.ndarray]:
        """Features (n, d) of the atoms of each structure, by the newest model."""
        if not frames:
            return []
        structures = [
            Structure.from_atoms(atoms, self.config.level, str(index))
            for index, atoms in enumerate(frames)
        ]
        features, _ = atom_features(self.model.potential, structures)
        return np.split(features, np.cumsum([len(atoms) for atoms in frames])[:-1])

    def _label(self, folder: Path, chosen: list[Atoms]) -> list[Label]:
        """The answers of the oracle."""
        if not chosen:
            return []
        with Progress(transient=True) as bar:
            task = bar.add_task(f"{folder.name}: labelling", total=len(chosen))
            return labels_of(
                folder / "labels",
                chosen,
                self.config,
                lambda done: bar.update(task, completed=done),
            )

    def _learn(self, folder: Path, number: int, before: dict[str, Any] | None) -> None:
        """Write the model of a round. before: errors on the new labels, or None without any."""
        digest = store.digest(
            {"name": one.name, "atoms": store.as_json(one.atoms)} | _json(one.results)
            for one in self.labels
            if one.failure is None
        )
        stall = stall_of(self.rounds, before, self.config)
        if stall is not None:
            # said beforehand, because no other step of the loop's own takes as long
            self.say(f"round {number}: tries {self.config.when_stalled}, because {stall}")
        fit(
            self.base,
            self.structures,
            digest,
            self._model_in(folder),
            self.config,
            folder / LEARNED,
            stall,
        )

    def _errors_before(self, new: list[Label]) -> dict[str, Any] | None:
        """Errors of the newest model on labels that it has not learned; None without any.

        Forces in eV/A, energies in eV/atom. Also None if the model has no uncertainty at the level.
        """
        uncertainty = self.model.uncertainties.get(self.config.level)
        structures = self._labelled(new)
        if uncertainty is None or not structures:
            return None
        physics = self.model.potential.config.physics
        to_learn = list(each_without_physics(structures, physics))
        seen = observe(self.model.potential, uncertainty, to_learn)
        spread = uncertainty.spread(seen.ingredients, seen.numbers)
        quantiles = uncertainty.force_quantiles(self.config.guard.coverage)
        radius = quantiles[uncertainty.group_of(seen.numbers)] * spread
        num_atoms = np.bincount(seen.structure_index)
        error = seen.error
        return {
            "force_rmse": float(np.sqrt(np.square(seen.force_error).mean())),
            "force_mae": float(np.abs(seen.force_error).mean()),
            "largest_error": float(error.max()),
            "label_rms": float(np.sqrt(np.square(seen.label_size).mean() / 3)),
            "energy_mae_per_atom": float((np.abs(seen.energy_error) / num_atoms).mean()),
            "covered": float((error <= radius).mean()),
            "worst": _worst([one.structure_id for one in structures], seen.structure_index, error),
        }

    # --- the results

    def _finish(self, ended: str) -> Learned:
        """Put the page, the model and the data set where a user looks for them."""
        page = self._write_page(ended)
        models = [self._model_in(folder) for folder in round_folders(self.out / ROUNDS)]
        models = [model for model in models if model.exists()]
        if not models:
            # nothing was flagged at all: the model knew everything that it met
            return Learned(None, None, page, ended, self.rounds)
        lost = self._lost_heads()
        if lost:
            self.say(heads_in_words(lost))

        data = self.out / "data"
        origin = {
            "file": f"structures on the way, labelled by {self.config.oracle}",
            "sha256": store.digest(
                {"atoms": store.as_json(one.atoms)} | _json(one.results) for one in self.labels
            ),
        }
        about = ConvertConfig(
            description=f"structures that simulations met, labelled by {self.config.oracle}",
            physics=self.base.potential.config.physics,
        )
        write_data_set(self.structures, data, origin, about, overwrite=True)

        newest = models[-1]
        model = self.out / "model"
        with replace_folder(model) as new:
            copy_folder(newest, new)
        return Learned(model, data, page, ended, self.rounds)

    def _write_page(self, state: str) -> Path:
        """Write the page. state: why the loop has ended, or that it is under way."""
        return write_report(
            self.out / "report.html",
            self.out.name,
            state,
            self.rounds,
            self.config,
            self._surprises(),
            self._lost_heads(),
        )

    def _lost_heads(self) -> list[str]:
        """Heads of other properties that the base model has and the newest one has not."""
        kept = self.model.heads
        return [name for name in self.base.heads if name not in kept]

    def _surprises(self) -> list[Surprise]:
        """The labelled structures that were judged before they were learned."""
        atoms = {label.name: label.atoms for label in self.labels}
        return [
            Surprise(name, atoms[name], worst["error"], worst["atom"])
            for one in self.rounds
            if one["before"] is not None
            for name, worst in one["before"]["worst"].items()
        ]


def round_folders(rounds: Path) -> list[Path]:
    """The folders of all rounds, the first round first."""
    # others, such as the folder views of a desktop, may put files beside the rounds
    folders = [folder for folder in rounds.iterdir() if folder.name.isdecimal()]
    # by number: as a name, round 1000 would come before 999
    return sorted(folders, key=lambda folder: int(folder.name))


def _is_sane(atoms: Atoms) -> bool:
    """Whether it makes sense to ask an oracle about a structure: no atoms collide, for example."""
    try:
        refuse_bad(atoms)
    except RejectedStructure:
        return False
    return True


def _identity(atoms: Atoms) -> str:
    """Equal for the same atoms at the same places, whatever their velocities."""
    return store.digest([store.as_json(atoms) | {"momenta": None}])


def _worst(
    names: Sequence[str], structure_index: np.ndarray, error: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Name -> the largest error (eV/A) of a force in the structure, and the index of its atom.

    structure_index, error: (N,) of the atoms of all structures.
    """
    found = {}
    for place, name in enumerate(names):
        own = error[structure_index == place]
        found[name] = {"error": float(own.max()), "atom": int(own.argmax())}
    return found


def _json(results: dict[str, Any]) -> dict[str, Any]:
    """The results of an oracle without arrays."""
    return {name: np.asarray(value).tolist() for name, value in results.items()}


def _in_words(done: dict[str, Any]) -> str:
    """One line about a round, from the content of its round.json."""
    parts = []
    if done["explored"]:
        parts.append(
            f"{len(done['stopped'])} of {done['walks']} simulations stopped"
            f"{_where_stopped(done['simulations'])}, {done['over']} over, "
            f"{done['picoseconds']:.3g} ps in all"
        )
    failed = f", {len(done['failures'])} failed" if done["failures"] else ""
    parts.append(f"{done['asked']} labels{failed}")
    if done["before"] is not None:
        before = done["before"]
        parts.append(
            f"before they were learned: forces off by {before['force_rmse']:.3f} eV/A (RMS), "
            f"{before['covered']:.0%} within their radius"
        )
    learned = done["learned"]
    if learned is not None and learned["why"] is not None:
        parts.append(strategy_in_words(learned))
    parts.append(f"{done['seconds']:.0f} s")
    return f"round {done['round']}: {'; '.join(parts)}"


def _where_stopped(simulations: Sequence[Mapping[str, Any]]) -> str:
    """The conditions at which simulations stopped, in brackets, the most frequent first."""
    found = Counter(one["conditions"] for one in simulations if one["stopped"] is not None)
    named = [f"{count} at {conditions}" for conditions, count in found.most_common(MOST_NAMED)]
    if len(found) > MOST_NAMED:
        named.append("others elsewhere")
    return f" ({'; '.join(named)})" if named else ""
