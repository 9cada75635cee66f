"""Combine the per-atom terms of a head into its predictions, for many structures at once.

From the features of an atom, a head computes numbers y_i, which are rotation-invariant, and a part
t_i, which rotates with the structure (or changes sign under inversion). The functions here sum or
average these terms, or multiply them by positions.

    charges       y_i - mean(y) + Q / N
    dipole        sum_i y_i (r_i - mean(r)) + t_i
    scalar        mean_i y_i, or their sum
    class         softmax of mean_i y_i
    states        eigenvalues of the matrix of sum_i y_i
    vector        sum_i t_i
    tensor        sum_i t_i + y_i 1                          polarizability too
    pseudoscalar  mean_i t_i, or their sum
    atom_*        the terms of these sums
    forces        t_i - mean(t)

TorchScript compiles these functions for other programs, so arguments are plain values and tensors.

Shapes: N atoms of S structures, K numbers y of an atom.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .symmetric import symmetric


def combined(
    kind: str,
    is_sum: bool,
    numbers: Tensor,
    turning: Tensor,
    positions: Tensor,
    structure_index: Tensor,
    net_charges: Tensor,
) -> Tensor:
    """Predictions of a head of a given kind: (S, ...) per structure, or (N, ...) per atom.

    `numbers` (N, K) are y. `turning` is t, with shape (N,), (N, 3) or (N, 3, 3); kinds without a
    rotating part ignore it. `positions` (N, 3) are in A, `net_charges` (S,) in e;
    `structure_index` is (N,). The result is differentiable.
    """
    if kind == "atom_scalar":
        return numbers[:, 0]
    if kind == "atom_vector":
        return turning
    if kind == "atom_tensor":
        return turning + _spherical(numbers)

    num_structures = net_charges.shape[0]
    # with domain decomposition, a program may pass structures without atoms
    sizes = _sums(torch.ones_like(numbers[:, 0]), structure_index, num_structures).clamp(min=1)
    if kind == "forces":
        means = _sums(turning, structure_index, num_structures) / sizes.unsqueeze(1)
        return turning - means[structure_index]
    if kind == "vector":
        return _sums(turning, structure_index, num_structures)
    if kind == "tensor" or kind == "polarizability":
        return _sums(turning + _spherical(numbers), structure_index, num_structures)
    if kind == "pseudoscalar":
        total = _sums(turning, structure_index, num_structures)
        return total if is_sum else total / sizes
    if kind == "dipole":
        centres = _sums(positions, structure_index, num_structures) / sizes.unsqueeze(1)
        arms = positions - centres[structure_index]
        return _sums(numbers * arms + turning, structure_index, num_structures)

    totals = _sums(numbers, structure_index, num_structures)
    if kind == "states":
        return torch.linalg.eigvalsh(symmetric(totals))
    means = totals / sizes.unsqueeze(1)
    if kind == "charges":
        shift = net_charges / sizes - means[:, 0]
        return numbers[:, 0] + shift[structure_index]
    if kind == "class":
        return torch.softmax(means, 1)
    assert kind == "scalar"
    return totals[:, 0] if is_sum else means[:, 0]


def combined_spread(
    of_atoms: bool,
    is_sum: bool,
    log_variances: Tensor,
    structure_index: Tensor,
    num_structures: int,
) -> Tensor:
    """Standard deviations of errors from log variances u (N,).

    The shape is (N,) for per-atom predictions and (S,) otherwise.
    """
    if of_atoms:
        return torch.exp(0.5 * log_variances)
    sizes = _sums(torch.ones_like(log_variances), structure_index, num_structures).clamp(min=1)
    spread = torch.exp(0.5 * _sums(log_variances, structure_index, num_structures) / sizes)
    return spread * sizes.sqrt() if is_sum else spread


def _sums(of_atoms: Tensor, structure_index: Tensor, num_structures: int) -> Tensor:
    """Sums (S, ...) over the atoms of each structure, from (N, ...)."""
    shape = [num_structures] + list(of_atoms.shape[1:])  # noqa: RUF005
    return of_atoms.new_zeros(shape).index_add(0, structure_index, of_atoms)


def _spherical(numbers: Tensor) -> Tensor:
    """Numbers (N, 1) times the identity matrix, (N, 3, 3)."""
    identity = torch.eye(3, dtype=numbers.dtype, device=numbers.device)
    return numbers.unsqueeze(2) * identity
