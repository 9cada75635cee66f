"""Energy against volume: a scan that finds the minimum, and a Birch-Murnaghan fit around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase.units import GPa


# Volumes of the scan, relative to the expected volume.
SCAN = np.linspace(0.60, 1.60, 21)
# Volumes of the fit, relative to the volume of the minimum.
FIT = np.linspace(0.94, 1.06, 7)


@dataclass(frozen=True)
class EquationOfState:
    """The minimum of the energy against the volume; all NaN if there is none.

    volume: A^3/atom. energy: eV/atom. bulk_modulus: GPa.
    """

    volume: float
    energy: float
    bulk_modulus: float


def fit_birch_murnaghan(volumes: np.ndarray, energies: np.ndarray) -> EquationOfState:
    """Fit the third-order Birch-Murnaghan equation to energies (eV) at volumes (A^3).

    F. Birch, Phys. Rev. 71, 809 (1947): the energy is a cubic polynomial in V^(-2/3), so the fit is
    linear. All results are NaN if the curve has no minimum. (ase.eos fits the same function
    iteratively, starting from a parabola, and may miss an existing minimum.)
    """
    # scaled by the median, because otherwise the powers differ by orders of magnitude
    scale = float(np.median(volumes))
    x = (volumes / scale) ** (-2 / 3)
    offset = float(energies.min())
    cubic = np.polynomial.Polynomial.fit(x, energies - offset, 3, domain=[-1, 1])
    slope = cubic.deriv()

    minima = []
    for root in slope.roots():
        value = float(root.real)
        is_real = abs(root.imag) < 1e-9 and value > 0
        if is_real and float(slope.deriv()(value)) > 0:
            minima.append(value)
    if not minima:
        return EquationOfState(np.nan, np.nan, np.nan)

    found = min(minima, key=lambda value: abs(value - 1))
    volume = scale * found ** (-3 / 2)
    # d2E/dV2 at the minimum, where dE/dx = 0, so that only d2E/dx2 contributes
    x_of_volume = -2 / 3 * found / volume
    curvature = float(slope.deriv()(found)) * x_of_volume**2
    energy = float(cubic(found)) + offset
    return EquationOfState(volume, energy, volume * curvature / GPa)


def find_minimum(energy: Callable[[float], float], expected: float) -> EquationOfState:
    """The lowest minimum of `energy` near an expected volume.

    energy: volume in A^3/atom -> eV/atom. expected: A^3/atom.

    All results are NaN if the energy is lowest at the first or the last volume of the scan, or if
    the calculator fails.
    """
    nothing = EquationOfState(np.nan, np.nan, np.nan)
    volumes = expected * SCAN
    energies = np.array([energy(volume) for volume in volumes])
    if not np.isfinite(energies).all():
        return nothing
    lowest = int(energies.argmin())
    if lowest in (0, len(volumes) - 1):
        return nothing

    # twice: the first fit is centred on a point of the scan, the second on the minimum itself
    centre = float(volumes[lowest])
    fit = nothing
    for _ in range(2):
        points = centre * FIT
        fit = fit_birch_murnaghan(points, np.array([energy(volume) for volume in points]))
        if not fit.volume > 0:
            return nothing
        centre = fit.volume
    return fit
