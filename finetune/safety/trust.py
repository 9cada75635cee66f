"""What stands beside a pretrained model so that it can be trusted later: probe set and posterior.

The probe shows what a fine-tuning forgets (forgetting.py); the posterior of the readout says how well the data
determine an energy (posterior.py). Neither changes the weights.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from ...data_pipelines.store.blocks import iter_structures
from ...data_pipelines.structure import Structure
from ...model_zoo.hub.load import LoadedModel, load
from ...model_zoo.package.folder import attach
from ..closed_form.posterior import FILE as POSTERIOR_FILE
from ..closed_form.posterior import Posterior
from ..closed_form.refit import refit_readout
from .forgetting import PROBE_FILE, probe_file, probe_of


NUM_STRUCTURES = 300  # that the posterior is taken from


def attach_trust(folder: Path | str, data: Path | str) -> list[str]:
    """Put both beside the model in `folder`, from its converted pretraining `data`; returns their names.

    Raises ValueError when the data hold no structure at the model's first level of theory.
    """
    model = load(Path(folder))
    files = {
        PROBE_FILE: probe_file(probe_of(model, data)),
        POSTERIOR_FILE: posterior_of(model, data).to_bytes(),
    }
    attach(folder, files)
    return sorted(files)


def posterior_of(model: LoadedModel, data: Path | str) -> Posterior:
    """Posterior of the readout of the first level of theory, around the weights as they are.

    The closed-form refit to training structures, of which only covariance and noise are kept: those weights are its
    mean as far as training has found the minimum.
    """
    level = model.potential.config.levels_of_theory[0]
    structures = [s for s in iter_structures(data, "train") if s.level_of_theory == level]
    if not structures:
        raise ValueError(
            f"{data}: has no training structure at {level}, the model's first level of theory"
        )
    known = {atomic_numbers[symbol] for symbol in model.record.elements.get(level, [])}
    chosen = _every_element_first(structures)[:NUM_STRUCTURES]
    return refit_readout(copy.deepcopy(model.potential), 0, chosen, known=known, known_e0=known)[1]


def _every_element_first(structures: list[Structure]) -> list[Structure]:
    """The same in random order, but with a structure of every element before all others."""
    order = np.random.default_rng(0).permutation(len(structures))
    seen: set[int] = set()
    first: list[Structure] = []
    others: list[Structure] = []
    for k in order:
        new = set(structures[k].atomic_numbers.tolist()) - seen
        (first if new else others).append(structures[k])
        seen |= new
    return first + others
