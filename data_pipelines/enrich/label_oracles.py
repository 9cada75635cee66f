"""Oracles by name: those of the demo data, a shell command, or an ASE calculator `module:Class`.

`data enrich` and `learn` (simulation/learn) both use them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from pydantic import Field

from ...core.settings import Settings
from ..demo.oracles import (
    EMT_LEVEL,
    XTB_LEVELS,
    OracleError,
    RejectedStructure,
    oracle_calculator,
    require_tblite,
)
from .command_oracle import CommandOracle


BUILT_IN = (*XTB_LEVELS, EMT_LEVEL)
COMMAND = CommandOracle.name


class OracleConfig(Settings):
    """Which oracle labels structures, and with which settings."""

    oracle: str = Field(
        description="GFN1-xTB, GFN2-xTB, EMT, command, or an ASE calculator as module:Class"
    )
    oracle_settings: dict[str, Any] = Field(
        default={},
        description="arguments of a calculator named as module:Class; of command, the line of a "
        "shell with {input} and {output} for the files",
    )

    @property
    def level_of_oracle(self) -> str:
        """Default level of theory of the oracle's labels."""
        return self.oracle.rpartition(":")[2]


def check_oracle(name: str, settings: Mapping[str, Any], setting: str = "oracle") -> None:
    """Raise EvenfieldError if an oracle cannot be used.

    setting: key of the setting that names the oracle, for the message.
    """
    if name in XTB_LEVELS:
        require_tblite()
    if name in BUILT_IN and settings:
        raise OracleError(
            f"{setting}={name} takes no {setting}_settings",
            remedy="name a calculator as module:Class",
        )
    new_calculator(name, settings, setting)


def new_calculator(name: str, settings: Mapping[str, Any], setting: str = "oracle") -> Calculator:
    """Create a calculator. Raises OracleError if the name or its settings are not valid.

    setting: key of the setting that names the oracle, for the message.
    """
    if name == COMMAND:
        if settings.keys() != {"command"}:
            key = f"{setting}_settings.command"
            raise OracleError(
                f"{setting}=command takes one setting, the command",
                remedy=f'add {key}="PROGRAM {{input}} {{output}}"',
            )
        return CommandOracle(**settings)
    if ":" not in name:
        return oracle_calculator(name)
    remedy = f"name a calculator as module:Class, with its arguments in {setting}_settings"
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OracleError(
            f"{setting}={name} cannot be imported ({error})", remedy=remedy
        ) from error
    try:
        calculator = found(**settings)
    except Exception as error:
        # third-party classes may raise anything
        raise OracleError(f"{setting}={name} cannot be made ({error})", remedy=remedy) from error
    if not callable(getattr(calculator, "get_potential_energy", None)):
        raise OracleError(f"{setting}={name} is no ASE calculator", remedy=remedy)
    return calculator


def label(atoms: Atoms, calculator: Calculator, largest_force: float) -> Atoms:
    """A copy labelled with energy (eV), forces (eV/A) and, for crystals if known, stress (eV/A^3).

    largest_force: limit for the norm of the force on an atom, eV/A.

    Raises RejectedStructure if the calculation fails, gives unusable results, or a force is larger
    than the limit.
    """
    calculated = atoms.copy()
    calculated.calc = calculator
    try:
        energy = float(calculated.get_potential_energy())
        forces = np.asarray(calculated.get_forces(), dtype=float)
        stress = _stress(calculated)
    except (Exception, SystemExit) as error:
        # Calculators raise KeyError, NotImplementedError and others for an unknown element, and
        # wrapped programs may call sys.exit.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RejectedStructure("calculation_failed", reason) from error

    if forces.shape != (len(atoms), 3):
        raise RejectedStructure("wrong_shape", f"forces of shape {forces.shape}")
    if not np.array_equal(calculated.numbers, atoms.numbers):
        raise RejectedStructure("atoms_in_another_order")
    finite = np.isfinite(energy) and np.isfinite(forces).all()
    if not finite or (stress is not None and not np.isfinite(stress).all()):
        raise RejectedStructure("not_finite")
    largest = float(np.linalg.norm(forces, axis=1).max())
    if largest > largest_force:
        raise RejectedStructure("force_too_large", f"{largest:.1f} eV/A")
    results = {"energy": energy, "forces": forces}
    if stress is not None:
        results["stress"] = stress
    calculated.calc = SinglePointCalculator(calculated, **results)
    return calculated


def _stress(atoms: Atoms) -> np.ndarray | None:
    """The stress (3, 3) of a crystal, eV/A^3; None without full periodicity or a known stress."""
    knows_stress = "stress" in getattr(atoms.calc, "implemented_properties", ())
    if not (atoms.pbc.all() and knows_stress):
        return None
    return np.asarray(atoms.get_stress(voigt=False), dtype=float)
