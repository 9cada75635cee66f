"""Refit of the core radii to new data, before the readout: one number for each element."""

from __future__ import annotations

import numpy as np
import torch

from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.repulsion import Repulsion
from ...pretrain.initial_potential import Sample, fit_radii


# More folds cost more fits, and all that the folds decide is the sign of the change.
MAX_FOLDS = 4


def refit_radii(potential: Potential, head: int, structures: list[Structure]) -> bool:
    """Fit the core radii of one head in place; returns whether they changed.

    The target is the part of the force labels that the rest of the potential does not explain. The
    radii change only if that lowers the force error of folds that a fit has not seen.
    """
    labelled = [structure for structure in structures if structure.forces is not None]
    if not potential.config.repulsion or len(labelled) < 2:
        return False

    cutoff = potential.config.cutoff
    radii = potential.repulsion.log_factor  # (heads, elements)
    # on the CPU, where `Sample` keeps its tensors
    repulsion = Repulsion(cutoff).to(radii.dtype)
    with torch.no_grad():
        repulsion.log_factor.copy_(radii[head])

    targets = _left_for_repulsion(potential, repulsion, labelled)
    if _change_of_unseen_error(repulsion, targets, cutoff) >= 0:
        return False

    fit_radii(repulsion, Sample.of(targets, cutoff))
    with torch.no_grad():
        radii[head] = repulsion.log_factor[0]
    return True


def _change_of_unseen_error(repulsion: Repulsion, targets: list[Structure], cutoff: float) -> float:
    """What a fit to all other folds adds to the error (eV/A) of a fold, summed over folds.

    The radii are the same afterwards.
    """
    before = repulsion.log_factor.detach().clone()
    num_folds = min(MAX_FOLDS, len(targets))
    change = 0.0

    for fold in range(num_folds):
        seen = [target for index, target in enumerate(targets) if index % num_folds != fold]
        unseen = Sample.of(targets[fold::num_folds], cutoff)

        change -= _error(repulsion, unseen)
        fit_radii(repulsion, Sample.of(seen, cutoff))
        change += _error(repulsion, unseen)

        # every fold starts from the pretrained radii
        with torch.no_grad():
            repulsion.log_factor.copy_(before)
    return change


def _left_for_repulsion(
    potential: Potential, repulsion: Repulsion, structures: list[Structure]
) -> list[Structure]:
    """The structures with the forces (N, 3) that core repulsion alone would have to exert."""
    pairs = predict(potential, structures).forces  # (all N, 3, 2)
    label = pairs[..., 0]
    predicted = pairs[..., 1]
    sample = Sample.of(structures, potential.config.cutoff)
    with torch.no_grad():
        _, repulsive = sample.repulsion(repulsion)

    # the prediction contains the repulsion of the present radii, which is to be replaced
    residual = label - predicted + repulsive.numpy()

    num_atoms = [len(structure) for structure in structures]
    ends = np.cumsum(num_atoms)[:-1]
    targets = []
    for structure, forces in zip(structures, np.split(residual, ends), strict=True):
        targets.append(structure.with_labels(forces=forces))
    return targets


def _error(repulsion: Repulsion, sample: Sample) -> float:
    """Summed absolute error of the force components (eV/A)."""
    with torch.no_grad():
        _, forces = sample.repulsion(repulsion)
    error = (forces - sample.forces).numpy()
    # components without a label are NaN
    return float(np.nansum(np.abs(error)))
