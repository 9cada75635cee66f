"""How high is the barrier between two structures, and how does its error change a rate?

The path is a climbing-image nudged elastic band (`ase.mep`) between two relaxed ends. With an
oracle, the oracle's energies of the model's images give the error of the barrier, and the factor by
which it changes a rate:

    k / k_oracle = exp(-(barrier - barrier_oracle) / (k_B T))
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from ..check import (
    CheckedModel,
    CheckError,
    CheckResult,
    Figure,
    OtherCalculator,
    structure_argument,
)
from ..sanity.answers import FAILURES, ask
from ..sanity.plots import curves_png
from .defects import rate_factors


MAX_STEPS = 500


def check(
    model: CheckedModel,
    start: Annotated[Atoms, structure_argument("where the path begins")],
    end: Annotated[Atoms, structure_argument("where it ends, with the atoms in the same order")],
    images: Annotated[int, typer.Option(min=1, help="structures between both ends")] = 5,
    fmax: Annotated[float, typer.Option(min=1e-4, help="largest force left, eV/A")] = 0.05,
    oracle: Annotated[
        str | None, typer.Option(help="calculator of ASE to compare with, as module:name")
    ] = None,
) -> CheckResult:
    """Barrier between two structures by climbing-image NEB, and the error of a rate.

    The exit code is 1 if the band does not converge.

    Example: evenfield check barrier evenfield-s before.xyz after.xyz --level-of-theory EMT
    --oracle ase.calculators.emt:EMT
    """
    if start.get_chemical_symbols() != end.get_chemical_symbols():
        raise CheckError(
            "both structures need the same atoms in the same order",
            remedy="sort the atoms of both files alike",
        )
    referee = None if oracle is None else OtherCalculator(oracle, option="--oracle ").calculator()
    calculator = model.calculator("float64")
    path, force = band(calculator, start, end, images, fmax)
    energies = np.array([ask(calculator, image).energy for image in path])
    energies -= energies[0]
    barrier = float(energies.max())
    figures = [
        Figure("largest force left", force, "eV/A", limit=fmax),
        Figure("barrier", barrier, "eV"),
        Figure("energy of the end", float(energies[-1]), "eV"),
    ]
    lines = [
        f"barrier {barrier:.3f} eV forwards, {barrier - energies[-1]:.3f} eV backwards; largest "
        f"force left {force:.3f} eV/A"
    ]
    along = np.linspace(0, 1, len(path))
    curves = {"model": (along, energies)}

    if referee is not None:
        theirs = np.array([ask(referee, image).energy for image in path])
        theirs -= theirs[0]
        curves["oracle"] = (along, theirs)
        error = barrier - float(theirs.max())
        rates = rate_factors(error)
        shown = ", ".join(f"{rate:.2g} at {at} K" for at, rate in rates.items())
        figures.append(Figure("error of the barrier", error, "eV"))
        lines.append(
            f"the oracle has {theirs.max():.3f} eV at these images: an error of {error:+.3f} eV"
        )
        lines.append(f"rate over that of the oracle: {shown}")
    picture = curves_png("minimum-energy path", "along the path", "energy, eV", curves)
    return CheckResult(figures, lines, pictures={"barrier.png": picture})


def band(
    calculator: Calculator, start: Atoms, end: Atoms, images: int, fmax: float
) -> tuple[list[Atoms], float]:
    """Relax both ends and the band between them.

    images: number of images between the ends. fmax: eV/A.

    Returns all images including the ends, and the largest remaining force in eV/A. Raises
    CheckError if the calculator fails.
    """
    path = [start.copy(), *(start.copy() for _ in range(images)), end.copy()]
    for image in path:
        image.calc = calculator
    try:
        for image in (path[0], path[-1]):
            # tighter than the band: an end that is not relaxed would not be a minimum of the path
            BFGS(image, logfile=None).run(fmax=fmax / 10, steps=MAX_STEPS)
        chain = NEB(path, climb=True, method="improvedtangent", allow_shared_calculator=True)
        chain.interpolate(mic=True)
        FIRE(chain, logfile=None).run(fmax=fmax, steps=MAX_STEPS)
        force = float(np.linalg.norm(chain.get_forces().reshape(-1, 3), axis=1).max())
    except FAILURES as error:
        raise CheckError(
            f"the path cannot be computed ({error})",
            remedy="look whether both ends are structures that the model knows",
        ) from error
    return path, force
