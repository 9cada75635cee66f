"""Learned element vectors that are initialised from physical descriptors.

Elements that are close in the periodic table therefore have similar vectors before training. Most
descriptors are computed: shells from the Madelung rule, effective charges from Slater's rules, and
electronegativities from Allred and Rochow (1958). Covalent radii come from ASE (Cordero et al.
2008).
"""

from __future__ import annotations

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from .interface import MAX_ATOMIC_NUMBER


def _subshells() -> list[tuple[int, int]]:
    """All subshells (n, l) up to n = 8 and l = 3 (f), in the order of filling."""
    subshells = []
    for n in range(1, 9):
        for degree in range(min(n, 4)):
            subshells.append((n, degree))

    def madelung(subshell: tuple[int, int]) -> tuple[int, int]:
        """The sort key: n + l first, then n."""
        n, degree = subshell
        return n + degree, n

    return sorted(subshells, key=madelung)


SUBSHELLS = _subshells()


def electron_configuration(z: int) -> dict[tuple[int, int], int]:
    """Electrons in each subshell (n, l) of the neutral atom by the Madelung rule."""
    shells = {}
    for n, degree in SUBSHELLS:
        if z <= 0:
            break
        capacity = 4 * degree + 2
        electrons = min(z, capacity)
        shells[n, degree] = electrons
        z -= electrons
    return shells


def slater_charge(z: int) -> float:
    """Effective nuclear charge for an outermost s or p electron, by Slater's rules (1930)."""
    shells = electron_configuration(z)
    outer = max(n for n, _ in shells)

    # an electron does not screen itself
    same = -1
    below = 0
    deep = 0
    for (n, degree), count in shells.items():
        if n < outer - 1:
            deep += count
        elif n == outer - 1:
            below += count
        elif degree < 2:
            same += count

    # electrons of the first shell screen each other less
    screening = 0.30 if z <= 2 else 0.35
    return z - screening * same - 0.85 * below - 1.0 * deep


def electronegativity(z: int) -> float:
    """Electronegativity of an element on the Pauling scale, by Allred and Rochow (1958)."""
    return 0.359 * slater_charge(z) / float(covalent_radii[z]) ** 2 + 0.744


def element_descriptors() -> np.ndarray:
    """Standardised descriptors of all elements, (119, 9), indexed by atomic number; row 0 is zero.

    The columns are period, covalent radius, effective charge, electronegativity, filling of the
    valence shell, and the numbers of s, p, d and f valence electrons.
    """
    rows = [_descriptors(z) for z in range(1, MAX_ATOMIC_NUMBER + 1)]
    table = np.array(rows, dtype=np.float64)
    # the descriptors have different units, and none should dominate
    table = (table - table.mean(0)) / table.std(0)
    # row z belongs to atomic number z
    row_zero = np.zeros(table.shape[1])
    return np.vstack([row_zero, table])


def _descriptors(z: int) -> list[float]:
    """The descriptors of one element, before standardisation."""
    shells = electron_configuration(z)
    period = max(n for n, _ in shells)

    # a filled d shell below p electrons belongs to the core, and so does an f shell below d ones
    s_electrons = shells[period, 0]
    p_electrons = shells.get((period, 1), 0)
    d_electrons = 0 if p_electrons else shells.get((period - 1, 2), 0)
    f_is_valence = d_electrons < 2 and not p_electrons
    f_electrons = 0
    if f_is_valence:
        f_electrons = shells.get((period - 2, 3), 0)

    radius = covalent_radii[z]
    charge = slater_charge(z)

    # the capacity of the valence shell: d and s hold 12 electrons, p and s hold 8
    if d_electrons:
        filling = (d_electrons + s_electrons) / 12
    else:
        filling = (p_electrons + s_electrons) / 8

    valence = [s_electrons, p_electrons, d_electrons, f_electrons]
    return [period, radius, charge, electronegativity(z), filling, *valence]


class ElementEmbedding(nn.Module):
    """Vectors for Z = 1..118. All elements always have one, so fine-tuning never drops any."""

    def __init__(self, size: int) -> None:
        super().__init__()
        descriptors = torch.from_numpy(element_descriptors()).float()
        num_descriptors = descriptors.shape[1]
        # each component of a vector has unit variance
        noise = torch.randn(num_descriptors, size, dtype=torch.float32)
        projection = noise / num_descriptors**0.5
        # distinguishes elements with similar descriptors
        own = 0.1 * torch.randn(MAX_ATOMIC_NUMBER + 1, size, dtype=torch.float32)
        self.weight = nn.Parameter(descriptors @ projection + own)

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """Atomic numbers (N,) -> (N, size)."""
        return self.weight.index_select(0, atomic_numbers)
