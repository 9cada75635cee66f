"""Ridge regression on equivariant features: for vectors, tensors and pseudoscalars.

The rows are those of `model_zoo/heads/rows.py`, which predictions also use: three for a vector, six
for a symmetric tensor, one for a pseudoscalar. Atoms without a label have no rows. Direct forces
have three more rows for the net torque on each molecule.

Shapes: S structures, N atoms, F invariants, R random functions, P columns of weights, Z elements.
"""

from __future__ import annotations

import numpy as np
import torch

from ...core.torch_modes import own_modes
from ...model_zoo.heads.description import KINDS
from ...model_zoo.heads.expansion import Expansion, drawn_expansion
from ...model_zoo.heads.rows import has_charges_or_trace, num_mixtures, rows_of
from ...model_zoo.network.interface import CarriedFeatures
from .config import HeadConfig
from .labels import LabelledFrames
from .ridge import ridge
from .split import groups_of
from .spread import left_out_errors, with_spread
from .weights import Weights


# rank -> number of independent entries of a prediction
NUM_INDEPENDENT = {0: 1, 1: 3, 2: 6}

# rank -> what is added to the size of a label before rows are divided by it, as a share of the
# median size. A dipole that vanishes by symmetry is not easy to predict; a polarizability is small
# only for small molecules.
SHARE_OF_MEDIAN = {1: 1.0, 2: 0.05}


@own_modes()
def fit_equivariant(
    labelled: LabelledFrames,
    features: list[CarriedFeatures],
    train: np.ndarray,
    elements: np.ndarray,
    config: HeadConfig,
) -> Weights:
    """Fit the weights to the structures at the indices `train`.

    features: of all structures. elements: (Z,) atomic numbers, each with a bias.
    """
    num_elements = len(elements)
    frames = [labelled.frames[s] for s in train]
    carried = [features[s] for s in train]
    places = [np.searchsorted(elements, atoms.numbers) for atoms in frames]
    expansion = drawn_expansion(
        carried,
        num_elements=num_elements,
        num_functions=config.head_functions,
        num_mixtures=num_mixtures(config.head),
        seed=config.seed,
    )

    about = KINDS[config.head]
    rank = about.rank
    is_sum = rank > 0 or config.extensive
    matrix_parts = []
    target_parts = []
    labelled_atoms = []
    column_parts = []
    shares = shares_of(labelled, train, config)
    for s, own, atoms, place, share in zip(train, carried, frames, places, shares, strict=True):
        found = rows_of(
            config.head,
            own,
            expansion,
            torch.as_tensor(place),
            torch.as_tensor(atoms.positions),
            num_elements,
            extensive=is_sum,
        )
        own_rows = _independent(found.numpy(), rank)
        label = np.asarray(labelled.labels[s])
        own_targets = _independent(label[..., None], rank)[:, 0]
        has_label = np.isfinite(own_targets)
        labelled_atoms.append(has_label.reshape(-1, NUM_INDEPENDENT[rank]).all(axis=1))
        matrix_parts.append(share * own_rows[has_label])
        target_parts.append(share * own_targets[has_label])
        if rank == 2:
            # the column that is not penalised: the same isotropic tensor for all atoms
            num_alike = 1 if about.per == "atom" else len(atoms)
            alike = np.broadcast_to(num_alike * np.eye(3), label.shape)
            column_parts.append(share * _independent(alike[..., None], rank)[has_label, 0])
        if config.head == "forces" and not atoms.pbc.any():
            torque = _torque_rows(found.numpy(), atoms.positions)
            matrix_parts.append(config.torque_weight * torque)
            target_parts.append(np.zeros(3))
    matrix = np.concatenate(matrix_parts)
    column = np.concatenate(column_parts) if column_parts else None

    # centre the invariants; the biases absorb their mean over the atoms
    num_columns = matrix.shape[1] - num_elements
    num_invariant = 0
    centre = np.zeros(0)
    if has_charges_or_trace(config.head):
        num_invariant = carried[0].invariants.shape[1] + config.head_functions
        centre = _mean_invariants(carried, places, expansion)
        atoms_of_row = matrix[:, num_columns:].sum(axis=1)
        matrix[:, :num_invariant] -= np.outer(atoms_of_row, centre)
    size = np.sqrt((matrix[:, :num_columns] ** 2).mean(axis=0))
    size[size <= 1e-12 * size.max(initial=0.0)] = 1.0
    matrix[:, :num_columns] /= size

    solution = ridge(matrix, np.concatenate(target_parts), column)
    weight = solution.weights[:num_columns] / size
    bias = solution.weights[num_columns:] + solution.constant
    if config.head == "dipole":
        bias = bias - bias.mean()
    else:
        bias = bias - weight[:num_invariant] @ centre
    if not num_invariant:
        bias = np.zeros(num_elements)
    weights = Weights(weight[None], bias[None], solution.penalty, expansion)
    if not config.spread:
        return weights

    all_groups = groups_of(labelled.frames, config)
    groups = [all_groups[s] for s in train]
    group_of_row = []
    for group, own_rows in zip(groups, matrix_parts, strict=True):
        group_of_row += [group] * len(own_rows)
    targets = np.concatenate(target_parts)
    errors = left_out_errors(matrix, targets, column, group_of_row, config.seed)
    # the six entries of a tensor are scaled to have the sum of squares of all nine components
    squares = (errors**2).reshape(-1, NUM_INDEPENDENT[rank]).sum(axis=1) / 3**rank
    invariants = [own.invariants.double().numpy() for own in carried]
    if about.per == "atom":
        return with_spread(
            weights, squares, invariants, frames, elements, groups, config.seed, labelled_atoms
        )
    # from errors of weighted rows to errors of predictions, and from sums over atoms to atoms
    squares = squares / shares**2
    if is_sum:
        squares = squares / np.array([len(atoms) for atoms in frames])
    return with_spread(weights, squares, invariants, frames, elements, groups, config.seed)


def shares_of(labelled: LabelledFrames, train: np.ndarray, config: HeadConfig) -> np.ndarray:
    """Weights (S,) of the rows of each structure at the indices `train`."""
    about = KINDS[config.head]
    if about.per == "structure" and about.rank > 0:
        # Errors grow with the size of the label. With equal weights, the few largest labels
        # dominate: errors of molecular polarizabilities then rise by half, of dipoles by a tenth.
        size = np.array([np.linalg.norm(labelled.labels[s]) for s in train])
        floor = SHARE_OF_MEDIAN[about.rank] * float(np.median(size))
        size = size + max(floor, np.finfo(float).tiny)
        return float(size.mean()) / size
    if config.extensive:
        # the error of a sum grows with the square root of the number of terms
        return np.array([len(labelled.frames[s]) ** -0.5 for s in train])
    return np.ones(len(train))


def _mean_invariants(
    carried: list[CarriedFeatures], places: list[np.ndarray], expansion: Expansion
) -> np.ndarray:
    """Mean (F + R,) over all atoms of the invariants and the gates of random functions."""
    invariants = torch.cat([own.invariants for own in carried]).double()
    gates = expansion.gate(invariants, torch.as_tensor(np.concatenate(places)))
    mean: np.ndarray = torch.cat([invariants, gates], 1).mean(0).numpy()
    return mean


def _independent(answers: np.ndarray, rank: int) -> np.ndarray:
    """Independent entries of the rows (..., P) of one structure or its atoms, as a matrix (D, P).

    A symmetric tensor has six, scaled so that the sum of their squares equals that of all nine
    entries. This sum is invariant under rotation.
    """
    if rank < 2:
        return answers.reshape(-1, answers.shape[-1])
    first = [0, 1, 2, 1, 0, 0]
    second = [0, 1, 2, 2, 2, 1]
    scale = np.sqrt([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    entries: np.ndarray = answers[..., first, second, :] * scale[:, None]
    return entries.reshape(-1, answers.shape[-1])


def _torque_rows(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Net torque (3, P) of force rows (N, 3, P), divided by the root of the sum of squared arms.

    Its error is then about as large as the error of a force component. positions: (N, 3) A.
    """
    arms = positions - positions.mean(axis=0)
    torque: np.ndarray = np.cross(arms[:, :, None], rows, axis=1).sum(axis=0)
    length = np.sqrt((arms**2).sum())
    return torque / length if length > 0 else torque
