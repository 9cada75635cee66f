"""Relax structures with a potential before they are labelled.

A model that relaxes a new compound leaves the region of its training structures. Its errors there
can be corrected only by labels of the structures that it reaches (Ross, Gordon and Bagnell, A
reduction of imitation learning to no-regret online learning, AISTATS 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from pydantic import Field

from ...core.settings import Settings
from ..demo.oracles import RejectedStructure


# A; with longer steps, a poor potential may move atoms on top of each other
LONGEST_STEP = 0.1


class RelaxationConfig(Settings):
    """How structures are relaxed before an oracle labels them."""

    calculator: str | None = Field(
        default=None,
        description="potential that relaxes the structures before they are labelled: the name of "
        "an oracle, or module:name. By default they are not relaxed",
    )
    calculator_settings: dict[str, Any] = Field(
        default={}, description="arguments of a calculator named as module:name"
    )
    most_steps: int = Field(
        default=60,
        ge=1,
        description="a structure is relaxed by a random number of steps, from 0 to this",
    )
    until_force: float = Field(
        default=0.02, gt=0, description="or until no force is larger than this, eV/A"
    )


def relaxed(
    rng: np.random.Generator, start: Atoms, calculator: Calculator, config: RelaxationConfig
) -> Atoms:
    """A copy of `start` after a random number of relaxation steps with `calculator`.

    The cell of a crystal is relaxed too, if the calculator has a stress. The copy has no calculator
    and no labels.

    Raises RejectedStructure if the calculator fails, or if positions or cell are not finite.
    """
    steps = int(rng.integers(0, config.most_steps + 1))
    atoms = start.copy()
    atoms.calc = calculator
    has_stress = "stress" in getattr(calculator, "implemented_properties", ())
    moved = FrechetCellFilter(atoms) if has_stress and atoms.pbc.all() else atoms
    try:
        FIRE(moved, logfile=None, maxstep=LONGEST_STEP).run(fmax=config.until_force, steps=steps)
    except (Exception, SystemExit) as error:
        # third-party calculators may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RejectedStructure("relaxation_failed", reason) from error

    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise RejectedStructure("relaxation_failed", "positions or cell are not finite")
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    # shards store float32, and must contain exactly the positions that were labelled
    bare.positions = bare.positions.astype(np.float32).astype(np.float64)
    return bare
