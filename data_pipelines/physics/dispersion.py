"""D3 dispersion with Becke-Johnson damping, computed by torch-dftd.

Grimme, Antony, Ehrlich and Krieg, J. Chem. Phys. 132, 154104 (2010); Grimme, Ehrlich and Goerigk,
J. Comput. Chem. 32, 1456 (2011). Three-body terms are left out.

Shapes: N atoms, E ordered pairs. Everything is in float64.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from ...core.errors import MissingPackageError
from ..neighbours import neighbour_list
from .config import DispersionConfig
from .errors import PhysicsError


# largest atomic number with D3 parameters: plutonium
MOST = 94
# A; cutoff of the coordination numbers, 40 Bohr as in the authors' code
COORDINATION_CUTOFF = 21.167


class Dispersion:
    """The dispersion energy of a structure; any directions may be periodic.

    The constructor raises MissingPackageError if torch-dftd is not installed.
    """

    def __init__(self, config: DispersionConfig) -> None:
        self.config = config
        functions, with_tables = _torch_dftd()
        self._edisp = functions.edisp
        self._bohr = functions.d3_autoang
        self._hartree = functions.d3_autoev
        params = {
            "s6": config.s6,
            "s18": config.s8,
            "rs6": config.a1,
            "rs18": config.a2,
            "alp": 14.0,
        }
        coordination = min(COORDINATION_CUTOFF, config.cutoff)
        self._tables = with_tables(params, config.cutoff, coordination, dtype=torch.float64)

    def __call__(
        self, numbers: np.ndarray, positions: Tensor, cell: Tensor, pbc: np.ndarray
    ) -> Tensor:
        """Energies (N,) in eV, differentiable by positions and cell.

        numbers: atomic numbers, (N,). positions (N, 3) and cell (3, 3) in A, pbc (3,).

        Raises PhysicsError for an element without D3 parameters.
        """
        unknown = sorted({chemical_symbols[z] for z in numbers if z > MOST})
        if unknown:
            raise PhysicsError(
                f"has {', '.join(unknown)}, for which D3 has no numbers",
                remedy="leave the structure out, or set physics without dispersion",
            )
        edge_index, shifts = neighbour_list(
            positions.detach().numpy(), cell.detach().numpy(), pbc, self.config.cutoff
        )
        if not edge_index.shape[1]:
            # no neighbours within the cutoff: zero, but still differentiable
            return 0.0 * positions.sum(1)
        sender, receiver = torch.from_numpy(edge_index)
        vectors = positions[sender] - positions[receiver] + torch.from_numpy(shifts) @ cell
        energies: Tensor = self._edisp(
            torch.from_numpy(numbers),
            vectors.norm(dim=1) / self._bohr,
            torch.stack([receiver, sender]),
            c6ab=self._tables.c6ab,
            r0ab=self._tables.r0ab,
            rcov=self._tables.rcov,
            r2r4=self._tables.r2r4,
            params=self._tables.params,
            cutoff=self._tables.cutoff / self._bohr,
            cnthr=self._tables.cnthr / self._bohr,
            # edisp returns one energy per graph. To get energies of atoms, each atom is declared a
            # graph that owns the pairs of which it is the receiver.
            batch=torch.arange(len(numbers)),
            batch_edge=receiver,
            # edisp uses only the length of `cell`, as the number of graphs
            cell=torch.zeros(len(numbers), 3, 3),
            cutoff_smoothing="poly",
            damping="bj",
            bidirectional=True,
        )
        return energies * self._hartree


def _torch_dftd() -> tuple[ModuleType, Any]:
    """torch-dftd's module of D3 functions, and its class that holds the parameter tables.

    Raises MissingPackageError if it is not installed.
    """
    try:
        from torch_dftd.functions import dftd3
        from torch_dftd.nn.dftd3_module import DFTD3Module
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_dftd":
            raise
        raise MissingPackageError(
            "torch-dftd", needed_for="physics.dispersion", extra="physics"
        ) from error
    return dftd3, DFTD3Module
