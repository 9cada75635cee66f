"""The rows that a head is linear in, one for each component of its prediction.

    dipole            sum_i (r_i - mean(r)) [s_i, g_i]     + sum_i [v_i, g_i u_i]
    vector            sum_i [v_i, g_i u_i]
    tensor            1 sum_i [s_i, g_i, one-hot(z_i)]     + sum_i [t_i, products of vectors]
    pseudoscalar      mean_i, or sum_i, of triple products
    atom_vector, atom_tensor                               the terms of these sums
    forces            as atom_vector, less the mean over the atoms: there is no net force

s, v and t are the invariants, vectors and tensors of `CarriedFeatures`. g, u and the products are
those of `expansion.py`. The first part of a dipole comes from charges, and has a column for each
element too. The second part comes from atomic dipoles. A dipole of charges alone has neither an
expansion nor a second part. A polarizability is treated as a tensor.

A fit uses the matrix of these rows. A prediction multiplies the per-atom parts by the weights
before it sums (`combined.py`), so a large structure needs no matrix.

Shapes: N atoms, P columns of weights, Z columns of biases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..network.interface import CarriedFeatures
from .description import KINDS, Kind
from .expansion import Expansion


# number of mixtures by rank and parity of the random functions
MIXTURES = {(1, -1): 1, (2, 1): 2, (0, -1): 3}


def num_mixtures(kind: Kind) -> int:
    """J, the number of vector mixtures that the random functions of a kind multiply."""
    about = KINDS[kind]
    return MIXTURES[about.rank, about.parity]


def num_columns(kind: Kind, sizes: tuple[int, int, int], num_functions: int) -> tuple[int, int]:
    """The numbers of weight columns for invariants, and for parts that rotate or change sign.

    `sizes` are F, V and T of the network.
    """
    num_invariants, num_vectors, num_tensors = sizes
    own = {"pseudoscalar": 0, "vector": num_vectors, "tensor": num_tensors}
    turning = own[_form(kind)] + num_functions
    return (num_invariants + num_functions if has_charges_or_trace(kind) else 0), turning


def has_charges_or_trace(kind: Kind) -> bool:
    """Whether a part of the prediction comes from invariants and elements."""
    return kind == "dipole" or KINDS[kind].rank == 2


def _form(kind: Kind) -> str:
    """The form of the part of a prediction that rotates or changes sign."""
    return {0: "pseudoscalar", 1: "vector", 2: "tensor"}[KINDS[kind].rank]


def rows_of(
    kind: Kind,
    carried: CarriedFeatures,
    expansion: Expansion | None,
    places: Tensor,
    positions: Tensor,
    num_elements: int,
    *,
    extensive: bool = True,
) -> Tensor:
    """The rows (..., P + Z) of one structure, float64. Leading axes are those of the prediction.

    For a per-atom property, the first axis is N. `places` (N,) are positions in the list of the
    head's Z elements, and `positions` (N, 3) are in A.
    """
    of_atoms, turning = parts_of_atoms(kind, carried, expansion, places)
    one_hot = torch.nn.functional.one_hot(places, num_elements).to(turning)
    if kind == "dipole":
        arms = positions - positions.mean(0)
        return torch.cat([arms.T @ of_atoms, turning.sum(0), arms.T @ one_hot], 1)
    if kind == "pseudoscalar":
        products = turning.sum(0)
        products = products if extensive else products / len(places)
        return torch.cat([products, products.new_zeros(num_elements)])

    if _form(kind) == "vector":
        if kind == "forces":
            turning = turning - turning.mean(0)
        no_bias = turning.new_zeros(*turning.shape[:2], num_elements)
        rows = torch.cat([turning, no_bias], 2)
    else:
        identity = torch.eye(3, dtype=turning.dtype, device=turning.device).unsqueeze(2)
        invariant = identity * of_atoms[:, None, None]
        rows = torch.cat([invariant, turning, identity * one_hot[:, None, None]], 3)
    return rows if KINDS[kind].per == "atom" else rows.sum(0)


def parts_of_atoms(
    kind: Kind, carried: CarriedFeatures, expansion: Expansion | None, places: Tensor
) -> tuple[Tensor, Tensor]:
    """The position-independent per-atom parts of the rows, float64.

    The first part is invariant, (N, F + R); it has no columns if the kind has neither charges nor a
    trace. The second part rotates or changes sign, and has the shape (N, R), (N, 3, V + R) or
    (N, 3, 3, T + R).
    """
    invariants = carried.invariants.double()
    vectors = carried.vectors.double()
    if expansion is None:
        return invariants, vectors[:, :, :0]

    gate = expansion.gate(invariants, places)
    mixed = expansion.mixed(vectors)
    nothing = invariants[:, :0]
    if kind == "pseudoscalar":
        first, second, third = mixed
        return nothing, gate * (first * torch.linalg.cross(second, third, dim=1)).sum(1)
    of_atoms = torch.cat([invariants, gate], 1)
    if _form(kind) == "vector":
        turning = torch.cat([vectors, gate.unsqueeze(1) * mixed[0]], 2)
        return (of_atoms if kind == "dipole" else nothing), turning
    products = _traceless(mixed[0], mixed[1], gate)
    return of_atoms, torch.cat([carried.tensors.double(), products], 3)


def _traceless(first: Tensor, second: Tensor, gate: Tensor) -> Tensor:
    """Gated symmetric traceless products (N, 3, 3, R) of two vectors (N, 3, R) of each atom."""
    outer = first.unsqueeze(2) * second.unsqueeze(1)
    symmetric = 0.5 * (outer + outer.transpose(1, 2))
    third = symmetric.diagonal(dim1=1, dim2=2).sum(2) / 3  # (N, R)
    identity = torch.eye(3, dtype=gate.dtype, device=gate.device).unsqueeze(2)
    return gate[:, None, None] * (symmetric - identity * third[:, None, None])
