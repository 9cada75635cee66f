"""Refit of the core radii of the elements in new data, one number each, before the readout is refitted."""

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
    """Fit the radii of one head in place to what the rest of the potential leaves of the forces of `structures`.

    Only if this also lowers the force error of structures that a fit has not seen; returns whether it did.
    """
    labelled = [s for s in structures if s.forces is not None]
    if not potential.config.repulsion or len(labelled) < 2:
        return False
    cutoff = potential.config.cutoff
    repulsion = Repulsion(cutoff).to(
        potential.repulsion.log_factor.dtype
    )  # on the CPU, where samples are
    with torch.no_grad():
        repulsion.log_factor.copy_(potential.repulsion.log_factor[head])
    left = _left_for_repulsion(potential, repulsion, labelled)
    before = repulsion.log_factor.detach().clone()
    num_folds, change = min(MAX_FOLDS, len(left)), 0.0
    for fold in range(num_folds):
        seen = [s for k, s in enumerate(left) if k % num_folds != fold]
        unseen = Sample.of(left[fold::num_folds], cutoff)
        change -= _error(repulsion, unseen)
        fit_radii(repulsion, Sample.of(seen, cutoff))
        change += _error(repulsion, unseen)
        with torch.no_grad():
            repulsion.log_factor.copy_(before)
    if change >= 0:
        return False
    fit_radii(repulsion, Sample.of(left, cutoff))
    with torch.no_grad():
        potential.repulsion.log_factor[head] = repulsion.log_factor[0]
    return True


def _left_for_repulsion(
    potential: Potential, repulsion: Repulsion, structures: list[Structure]
) -> list[Structure]:
    """The structures with the forces (N, 3) that core repulsion alone would have to give them."""
    predicted = predict(potential, structures).forces  # (sum N, 3, 2): label, prediction
    with torch.no_grad():
        _, own = Sample.of(structures, potential.config.cutoff).repulsion(repulsion)
    left = predicted[..., 0] - predicted[..., 1] + own.numpy()
    ends = np.cumsum([len(s) for s in structures])[:-1]
    return [
        s.with_labels(forces=forces)
        for s, forces in zip(structures, np.split(left, ends), strict=True)
    ]


def _error(repulsion: Repulsion, sample: Sample) -> float:
    """Summed absolute error of the force components (eV/A)."""
    with torch.no_grad():
        _, forces = sample.repulsion(repulsion)
    return float(np.nansum(np.abs((forces - sample.forces).numpy())))
