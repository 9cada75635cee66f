"""Refit of the core radii to new data, before the readout: one number for each element."""

from __future__ import annotations

import numpy as np
import torch

from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.repulsion import Repulsion
from ...pretrain.initial_potential import Sample, fit_radii


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
    # on the CPU, where samples are
    repulsion = Repulsion(cutoff).to(potential.repulsion.log_factor.dtype)
    with torch.no_grad():
        repulsion.log_factor.copy_(potential.repulsion.log_factor[head])
    targets = _left_for_repulsion(potential, repulsion, labelled)
    before = repulsion.log_factor.detach().clone()

    num_folds = min(MAX_FOLDS, len(targets))
    change = 0.0
    for fold in range(num_folds):
        seen = [target for index, target in enumerate(targets) if index % num_folds != fold]
        unseen = Sample.of(targets[fold::num_folds], cutoff)
        change -= _error(repulsion, unseen)
        fit_radii(repulsion, Sample.of(seen, cutoff))
        change += _error(repulsion, unseen)
        with torch.no_grad():
            repulsion.log_factor.copy_(before)
    if change >= 0:
        return False

    fit_radii(repulsion, Sample.of(targets, cutoff))
    with torch.no_grad():
        potential.repulsion.log_factor[head] = repulsion.log_factor[0]
    return True


def _left_for_repulsion(
    potential: Potential, repulsion: Repulsion, structures: list[Structure]
) -> list[Structure]:
    """The structures with the forces (N, 3) that core repulsion alone would have to exert."""
    pairs = predict(potential, structures).forces  # (all N, 3, 2): label, prediction
    with torch.no_grad():
        _, repulsive = Sample.of(structures, potential.config.cutoff).repulsion(repulsion)
    left = pairs[..., 0] - pairs[..., 1] + repulsive.numpy()

    ends = np.cumsum([len(structure) for structure in structures])[:-1]
    parts = np.split(left, ends)
    return [
        structure.with_labels(forces=forces)
        for structure, forces in zip(structures, parts, strict=True)
    ]


def _error(repulsion: Repulsion, sample: Sample) -> float:
    """Summed absolute error of the force components (eV/A)."""
    with torch.no_grad():
        _, forces = sample.repulsion(repulsion)
    return float(np.nansum(np.abs((forces - sample.forces).numpy())))
