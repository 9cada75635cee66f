"""What makes the results of a pretrained model trustworthy: probe set, posterior, errors, domain.

The probe set shows what a fine-tuning forgets (forgetting.py). The posterior of the readout says
how well the data determine an energy (closed_form/posterior.py). The uncertainty says how large the
errors of energies and forces are (uncertainty.py). The domain says where each level of theory has
training structures; a pretraining writes it itself, unless its data were converted before domains
were collected.

`attach_trust` writes these files into a model folder, and `recalibrate` renews the uncertainty.
Neither changes the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from ase.data import atomic_numbers

from ...core.destination import DestinationError
from ...core.errors import EvenfieldError
from ...core.torch_modes import own_modes
from ...data_pipelines.census.domain import LevelDomain, domain_of
from ...data_pipelines.physics.residual import as_learned
from ...data_pipelines.store.blocks import iter_structures
from ...data_pipelines.store.shards import read_info
from ...data_pipelines.structure import Structure
from ...model_zoo.hub.load import LoadedModel, load
from ...model_zoo.package.domain_record import DOMAIN, domain_file
from ...model_zoo.package.folder import attach, refuse_files_of_others
from ...model_zoo.package.levels import default_level
from ...model_zoo.package.record import TrainingData
from ...model_zoo.uncertainty.record import (
    REMEDY,
    UNCERTAINTY,
    uncertainties_of,
    uncertainty_file,
)
from ..closed_form.posterior import FILE as POSTERIOR_FILE
from ..closed_form.posterior import Posterior
from ..closed_form.refit import refit_readout
from .forgetting import PROBE_FILE, probe_file, probe_of, unlearned
from .uncertainty import TooFewStructuresError, make_uncertainty, recalibrated


Split = Literal["valid", "test"]

# Structures that the posterior is computed from.
NUM_STRUCTURES = 300


@own_modes()
def recalibrate(
    folder: Path | str,
    data: Path | str,
    *,
    level_of_theory: str | None = None,
    calibrate_on: Split = "valid",
) -> list[str]:
    """Renew the scales of the uncertainty that a model has, from structures of another kind.

    Committee, distances and the form of the spread stay, since they are about the training data.
    Scales and quantiles become those of the errors on the split `calibrate_on` of `data`, of which
    the model must not have learned anything. level_of_theory: by default that of the model.

    Returns the names of the files that changed. Raises EvenfieldError if the model has no record of
    the level, and TooFewStructuresError.
    """
    model = load(Path(folder))
    level = model.level_to_use(level_of_theory)
    levels = uncertainties_of(model.potential, model.attachments)
    if level not in levels:
        raise EvenfieldError(
            f"has no record of the uncertainty of {level} with these weights",
            file=folder,
            remedy=REMEDY,
        )
    refuse_files_of_others(folder, [UNCERTAINTY])
    held_out = _held_out(data, calibrate_on, level, model)
    renewed = recalibrated(model.potential, levels[level], held_out, split=calibrate_on)
    attach(folder, {UNCERTAINTY: uncertainty_file(model.potential, levels | {level: renewed})})
    return [UNCERTAINTY]


@own_modes()
def attach_trust(
    folder: Path | str,
    data: Path | str,
    *,
    overwrite: bool = False,
    level_of_theory: str | None = None,
    calibrate_on: Split = "valid",
    say: Callable[[str], object] | None = None,
) -> list[str]:
    """Write the files of this module into a model folder, from its converted pretraining `data`.

    The domain is written only for a model that has none and was trained on these data alone.
    Structures with elements that their level has not learned are left out.

    overwrite: replace files that the model has.
    level_of_theory: write only the uncertainty of this level, next to those of other levels. By
        default all files are written, with the uncertainty of the level of the posterior.
    calibrate_on: split that gives the quantiles; the model must not have learned from it.
    say: is told of structures that are left out, of data that are not those of the training, and of
        a split with too few structures for an uncertainty, which is then not written.

    Returns the names of the files. Raises DestinationError if the model has one of them, unless
    `overwrite`, and if a user has put a file with such a name there, even then. Raises
    EvenfieldError if the data have no structure at the level, which by default is the model's
    default level, or its first if it has no default.
    """
    model = load(Path(folder))
    if say is not None:
        for line in _notes(model, data):
            say(line)
    if level_of_theory is not None:
        return _attach_level(folder, model, data, level_of_theory, calibrate_on, overwrite)
    present = sorted({PROBE_FILE, POSTERIOR_FILE} & model.attachments.keys())
    if present and not overwrite:
        # the posterior of a fine-tuning belongs to another head, and cannot be made again
        raise DestinationError(
            f"already has {' and '.join(present)}",
            file=folder,
            remedy="keep what it has, or replace it with --overwrite",
        )
    names = [PROBE_FILE, POSTERIOR_FILE, UNCERTAINTY]
    writes_domain = not model.domains and model.record.training_data == [_training_data(data)]
    if writes_domain:
        names.append(DOMAIN)
    # before the long work
    refuse_files_of_others(folder, names)

    posterior = posterior_of(model, data)
    files = {
        PROBE_FILE: probe_file(probe_of(model, data)),
        POSTERIOR_FILE: posterior.to_bytes(),
    }
    try:
        files |= _uncertainty_file(model, posterior.level_of_theory, data, calibrate_on)
    except TooFewStructuresError as error:
        if say is not None:
            what = "keeps its" if UNCERTAINTY in model.attachments else "without"
            say(f"{what} {UNCERTAINTY}: {error.message}")
    if writes_domain:
        files |= domain_file(_domains_of(data))
    attach(folder, files)
    return sorted(files)


def _notes(model: LoadedModel, data: Path | str) -> list[str]:
    """Lines for the user: about data that the model was not trained on, and structures left out."""
    lines = []
    stated = model.record.training_data
    # a model that does not state its data may have been trained on these
    if stated and _training_data(data).sha256 not in {one.sha256 for one in stated}:
        names = ", ".join(one.name for one in stated)
        lines.append(
            f"warning: {data} is not what {model.record.name} says that it was trained on "
            f"({names}); what is attached is about these data"
        )
    left_out: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}
    for structure in _training_structures(data, model):
        level = structure.level_of_theory
        unseen = unlearned(structure, model)
        if unseen:
            left_out.setdefault(level, set()).update(unseen)
            numbers[level] = numbers.get(level, 0) + 1
    for level, symbols in left_out.items():
        lines.append(
            f"left out: {numbers[level]} training structures at {level!r} with "
            f"{', '.join(sorted(symbols))}, not learned at this level"
        )
    return lines


def _training_structures(data: Path | str, model: LoadedModel) -> Iterator[Structure]:
    """Those at levels of theory of the model."""
    levels = model.potential.config.levels_of_theory
    for structure in iter_structures(data, "train"):
        if structure.level_of_theory in levels:
            yield structure


def _training_data(data: Path | str) -> TrainingData:
    """What the record of a model that was trained on these data says about them."""
    info = read_info(data)
    return TrainingData.of_data_set(info, info["num_structures"]["train"])


def _domains_of(data: Path | str) -> dict[str, LevelDomain]:
    """The domain of each level of theory, from the training structures themselves."""
    by_level: dict[str, list[Structure]] = {}
    for structure in iter_structures(data, "train"):
        by_level.setdefault(structure.level_of_theory, []).append(structure)
    return {level: domain_of(structures) for level, structures in by_level.items()}


def posterior_of(model: LoadedModel, data: Path | str) -> Posterior:
    """Posterior of the readout of the default head (or the first), around its weights.

    Covariance and noise are those of a closed-form refit to training structures. Its weights are
    discarded: the trained ones are the mean, as far as the training has found the minimum.
    """
    levels = model.potential.config.levels_of_theory
    level = default_level(model.record, levels) or levels[0]
    structures = [
        one
        for one in iter_structures(data, "train")
        if one.level_of_theory == level and not unlearned(one, model)
    ]
    if not structures:
        raise _no_structure(data, level)
    known = {atomic_numbers[symbol] for symbol in model.record.trained_symbols(level)}
    chosen = _every_element_first(structures)[:NUM_STRUCTURES]
    chosen = list(as_learned(chosen, data, model.potential.config.physics))
    refitted = copy.deepcopy(model.potential)
    head = levels.index(level)
    _, posterior = refit_readout(refitted, head, chosen, known=known, known_e0=known)
    return posterior


def _attach_level(
    folder: Path | str,
    model: LoadedModel,
    data: Path | str,
    level: str,
    calibrate_on: Split,
    overwrite: bool,
) -> list[str]:
    """Add the uncertainty of one more level; the other files stay as they are."""
    level = model.level_to_use(level)
    if level in uncertainties_of(model.potential, model.attachments) and not overwrite:
        raise DestinationError(
            f"already has the uncertainty of {level}",
            file=folder,
            remedy="keep what it has, or replace it with --overwrite",
        )
    refuse_files_of_others(folder, [UNCERTAINTY])
    attach(folder, _uncertainty_file(model, level, data, calibrate_on))
    return [UNCERTAINTY]


def _uncertainty_file(
    model: LoadedModel, level: str, data: Path | str, split: Split
) -> dict[str, bytes]:
    """The file with the uncertainty of this level, and of the levels that the model had before."""
    levels = uncertainties_of(model.potential, model.attachments)
    train = _answered(data, "train", level, model)
    if not train:
        raise _no_structure(data, level)
    physics = model.potential.config.physics
    made = make_uncertainty(
        model.potential,
        level,
        list(as_learned(_every_element_first(train), data, physics)),
        _held_out(data, split, level, model),
        known={atomic_numbers[symbol] for symbol in model.record.trained_symbols(level)},
        split=split,
    )
    return {UNCERTAINTY: uncertainty_file(model.potential, levels | {level: made})}


def _held_out(data: Path | str, split: Split, level: str, model: LoadedModel) -> list[Structure]:
    """Structures of a split for the scores, in random order: the first ones are like all others."""
    found = _answered(data, split, level, model)
    order = np.random.default_rng(0).permutation(len(found))
    return list(as_learned([found[k] for k in order], data, model.potential.config.physics))


def _answered(data: Path | str, split: str, level: str, model: LoadedModel) -> list[Structure]:
    """Structures of a split at a level of theory, of elements that the model has learned there."""
    # a data set may lack the split, and reading a missing one is an error
    if not read_info(data)["num_structures"][split]:
        return []
    return [
        one
        for one in iter_structures(data, split)
        if one.level_of_theory == level and not unlearned(one, model)
    ]


def _no_structure(data: Path | str, level: str) -> EvenfieldError:
    return EvenfieldError(
        f"has no training structure at {level} with elements that the model has learned there",
        remedy="name the data that the model was trained on",
        file=data,
    )


def _every_element_first(structures: list[Structure]) -> list[Structure]:
    """The structures in random order, but those that bring a new element come first."""
    order = np.random.default_rng(0).permutation(len(structures))
    seen: set[int] = set()
    first: list[Structure] = []
    others: list[Structure] = []
    for index in order:
        structure = structures[index]
        new = set(structure.atomic_numbers.tolist()) - seen
        if new:
            first.append(structure)
        else:
            others.append(structure)
        seen |= new
    return first + others
