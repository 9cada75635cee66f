"""How many beads does a path integral need, and which error remains with many beads?

Nuclei are quantum particles. A path integral replaces each nucleus by a ring of P beads at P times
the temperature. The energy has two errors: that of a finite number of beads, and that of a wrong
curvature of the potential. Both have a closed form for the harmonic modes of a molecule:

    E_P(w) = (1 / beta) sum_k w^2 / (w^2 + w_k^2),   w_k = 2 P / (beta hbar) sin(k pi / P)
    E_infinity(w) = hbar w / 2 coth(beta hbar w / 2)

(Schweizer, Stratt, Chandler and Wolynes, J. Chem. Phys. 75, 1347, 1981). k runs over the P modes of
the ring. The error of the beads is E_P - E_infinity at the model's frequencies. The error of the
curvature is the difference between E_infinity at the model's frequencies and at those of experiment
or of the oracle. Both neglect anharmonicity.
"""

from __future__ import annotations

import numpy as np
from ase import units
from ase.build import molecule

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.config import SanityConfig
from ..sanity.oracle import oracle_of
from ..sanity.plots import curves_png
from ..sanity.verdicts import failures, with_progress
from .vibrations import EXPERIMENT, QUICK, vibrations_of


LADDER = (1, 2, 4, 8, 16, 32, 64, 128)
# Largest relative error of the energy by a finite number of beads: a usual convergence criterion.
CONVERGED = 0.01
# Largest relative error of the energy by a wrong curvature. Experimental frequencies contain
# anharmonicity, which is 2 to 5 % of the energy of these molecules.
CURVATURE = 0.1


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Number of beads that path integrals need, and the error of the curvature.

    For small molecules at the temperature of the settings. With `oracle=`, the reference
    frequencies come from the oracle instead of experiment.

    Example: evenfield check beads evenfield-s --level-of-theory GFN1-xTB elements=[H,O]
    """
    calculator = model.calculator("float64")
    oracle = oracle_of(settings)
    known = set(settings.chosen(model.symbols))
    wanted = QUICK if settings.suite == "quick" else tuple(EXPERIMENT)
    judged = [name for name in wanted if set(molecule(name).symbols) <= known]
    skipped = [name for name in wanted if name not in judged]

    figures = [Figure("molecules", len(judged), "")]
    lines: list[str] = []
    pictures = {}
    without_modes = []
    curves = {}
    needed = {}
    curvature = {}
    for name in with_progress("beads", judged):
        found = vibrations_of(calculator, molecule(name))
        if not (found.is_whole and found.is_minimum):
            without_modes.append(name)
            continue
        expected = np.array(EXPERIMENT[name], float)
        if oracle is not None:
            expected = vibrations_of(oracle, molecule(name)).frequencies

        exact = quantum_energy(found.frequencies, settings.temperature)
        errors = [
            bead_energy(found.frequencies, settings.temperature, beads) / exact - 1
            for beads in LADDER
        ]
        curves[name] = (np.array(LADDER, float), np.abs(errors))
        needed[name] = beads_needed(found.frequencies, settings.temperature)
        theirs = quantum_energy(expected, settings.temperature)
        curvature[name] = (exact - theirs) / theirs
        lines.append(
            f"{name:4} {1000 * exact:.0f} meV, {100 * curvature[name]:+.1f} % by curvature; "
            f"{100 * errors[0]:+.0f} % by one bead, {100 * errors[3]:+.1f} % by {LADDER[3]}, below "
            f"{100 * CONVERGED:g} % from {needed[name]} on"
        )

    if judged:
        figure, named = failures("molecules without real modes", without_modes)
        figures.append(figure)
        lines += named
    if needed:
        source = "experiment" if oracle is None else "the oracle"
        median = float(np.median(np.abs(list(curvature.values()))))
        figures += [
            Figure(f"median error by curvature, against {source}", median, "", limit=CURVATURE),
            Figure("beads for all molecules", max(needed.values()), ""),
        ]
        pictures["beads.png"] = curves_png(
            f"energy at {settings.temperature:g} K that beads miss",
            "beads",
            "share of the quantum energy",
            curves,
            limit=CONVERGED,
            logarithmic=True,
            doubling=True,
        )
    return CheckResult(figures, lines, skipped, pictures)


def quantum_energy(wave_numbers: np.ndarray, temperature: float) -> float:
    """Mean quantum energy in eV of M harmonic modes, for wave numbers (M,) in 1/cm; T in K."""
    quanta = np.asarray(wave_numbers) * units.invcm
    half = quanta / (2 * units.kB * temperature)
    return float((quanta / 2 / np.tanh(half)).sum())


def bead_energy(wave_numbers: np.ndarray, temperature: float, beads: int) -> float:
    """The same energy for a ring of `beads` beads; one bead is a classical particle."""
    quanta = np.asarray(wave_numbers)[:, None] * units.invcm
    thermal = units.kB * temperature
    ring = 2 * beads * thermal * np.sin(np.arange(beads) * np.pi / beads)
    return float((thermal * quanta**2 / (quanta**2 + ring**2)).sum())


def beads_needed(wave_numbers: np.ndarray, temperature: float) -> int:
    """The smallest power of two for which the energy is within CONVERGED of the exact energy."""
    exact = quantum_energy(wave_numbers, temperature)
    beads = 1
    while abs(bead_energy(wave_numbers, temperature, beads) / exact - 1) > CONVERGED:
        beads *= 2
    return beads
