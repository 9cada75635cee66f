"""Which time steps are stable, and is there a drift that no time step removes?

The same NVE dynamics runs for the same time with growing time steps. Velocity Verlet conserves the
total energy up to oscillations that grow with the square of the time step. If the forces are not
the derivative of an energy, they do work at any step, so that the drift remains for small steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from ...core.thermal import set_thermal_momenta
from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import FAILURES
from ..sanity.choice import chosen_systems
from ..sanity.config import SanityConfig, Suite
from ..sanity.plots import curves_png
from ..sanity.systems import SYSTEMS, PairDistances, System
from ..sanity.verdicts import failures, refusal_of_energy, with_progress


# Time steps relative to the usual step of a system, which is 2 fs for a metal, 0.5 fs with
# hydrogen.
MULTIPLES: dict[Suite, tuple[float, ...]] = {
    "quick": (1, 2, 4),
    "standard": (0.5, 1, 2, 4),
    "full": (0.5, 1, 2, 3, 4, 6),
}
PICOSECONDS: dict[Suite, float] = {"quick": 0.2, "standard": 0.5, "full": 2.0}
QUICK = ("Cu", "Si", "NaCl")

# Limits for a safe step: drift of the total energy, and its scatter about the drift.
DRIFT = 10.0  # meV/atom/ps
SCATTER = 5.0  # meV/atom
# Limit for the drift extrapolated to a time step of zero.
REMAINDER = 5.0  # meV/atom/ps


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """How long may a time step be, and does a short one conserve the energy?

    Example: evenfield check timestep evenfield-s elements=[Cu] suite=quick --level-of-theory EMT
    """
    calculator = model.calculator()
    refusal = refusal_of_energy(calculator)
    if refusal is not None:
        return refusal
    is_quick = settings.suite == "quick"
    built_in = [each for each in SYSTEMS if (each.name in QUICK if is_quick else each.is_quick)]
    judged, skipped = chosen_systems(settings, model.symbols, built_in)

    scans = [_scan(calculator, system, settings) for system in with_progress("timestep", judged)]
    figures = [Figure("systems", len(scans), "")]
    lines = [str(scan) for scan in scans]
    pictures = {}
    if scans:
        safe = min(scan.largest_safe / scan.usual for scan in scans)
        figures.append(Figure("largest safe step over the usual one", safe, "", at_least=1.0))
        remaining = [scan.name for scan in scans if not abs(scan.remainder) <= REMAINDER]
        figure, named = failures("systems with a drift that no time step removes", remaining)
        figures.append(figure)
        lines = named + lines
        curves = {scan.name: (scan.steps, np.maximum(np.abs(scan.drifts), 1e-4)) for scan in scans}
        pictures["timestep.png"] = curves_png(
            "drift of the total energy",
            "time step, fs",
            "meV/atom/ps",
            curves,
            limit=DRIFT,
            logarithmic=True,
        )
    return CheckResult(figures, lines, skipped, pictures)


@dataclass(frozen=True)
class Scan:
    """Results for a system with T time steps.

    usual: the usual time step, fs. steps: (T,) fs. drifts: (T,) meV/atom/ps, infinite if the
    dynamics failed. scatters: (T,) meV/atom, root mean square about the drift.
    """

    name: str
    usual: float
    steps: np.ndarray
    drifts: np.ndarray
    scatters: np.ndarray

    @property
    def largest_safe(self) -> float:
        """The longest step in fs up to which all steps conserve the energy; 0 if none does."""
        safe = (np.abs(self.drifts) <= DRIFT) & (self.scatters <= SCATTER)
        number = len(safe) if safe.all() else int(np.argmin(safe))
        return float(self.steps[number - 1]) if number else 0.0

    @property
    def remainder(self) -> float:
        """Drift in meV/atom/ps at a step of zero, extrapolated from the two shortest steps.

        The errors of velocity Verlet scale with the square of the step.
        """
        ratio = (self.steps[1] / self.steps[0]) ** 2
        short, longer = self.drifts[:2]
        # if the longer step failed, there is nothing to extrapolate from
        if not np.isfinite(longer):
            return float(short)
        return float((ratio * short - longer) / (ratio - 1))

    def __str__(self) -> str:
        drifts = ", ".join(
            f"{step:g} fs {drift:+.2f} ({scatter:.2f})"
            for step, drift, scatter in zip(self.steps, self.drifts, self.scatters, strict=True)
        )
        return (
            f"{self.name}: safe up to {self.largest_safe:g} fs; drift in meV/atom/ps "
            f"(scatter in meV/atom): {drifts}"
        )


def _scan(calculator: Calculator, system: System, settings: SanityConfig) -> Scan:
    length = 1000 * (settings.picoseconds or PICOSECONDS[settings.suite])
    steps = system.time_step * np.array(MULTIPLES[settings.suite])
    results = []
    for step in steps:
        start = system.atoms()
        # by equipartition, half of the kinetic energy becomes potential energy
        set_thermal_momenta(start, 2 * settings.temperature, settings.seed)
        Stationary(start, preserve_temperature=False)
        start.calc = calculator
        results.append(_slope(start, float(step), round(length / step)))
    drifts, scatters = np.array(results).T
    return Scan(system.name, system.time_step, steps, drifts, scatters)


def _slope(atoms: Atoms, step: float, number: int) -> tuple[float, float]:
    """Drift in meV/atom/ps and scatter in meV/atom; infinite if atoms fuse or a call fails.

    step: fs. number: of steps.
    """
    distances = PairDistances(atoms)
    dynamics = VelocityVerlet(atoms, step * units.fs)
    energies = []
    try:
        with np.errstate(all="ignore"):
            for _ in range(max(number, 4)):
                dynamics.run(1)
                energies.append(1000 * float(atoms.get_total_energy()) / len(atoms))
    except FAILURES:
        return np.inf, np.inf
    if not np.isfinite(energies).all() or distances.fused(atoms) is not None:
        return np.inf, np.inf

    times = np.arange(len(energies)) * step / 1000
    line = np.polyfit(times, energies, 1)
    scatter = float(np.std(np.array(energies) - np.polyval(line, times)))
    return float(line[0]), scatter
