"""Relax a structure and run dynamics at constant energy (NVE).

With forces that are the exact slope of the energy, the total energy is conserved but for the error
of the integrator. Its drift therefore shows how consistent a model is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from pydantic import Field
from rich.progress import Progress

from ..core.files import file_errors, write_atomically
from ..core.settings import Settings


RESULT_FILE = "dynamics.json"
TRAJECTORY_FILE = "trajectory.traj"


class DynamicsConfig(Settings):
    """A relaxation, then dynamics at constant energy."""

    fmax: float = Field(
        default=0.02, gt=0, description="eV/A; the structure is relaxed when no force is larger"
    )
    relax_steps: int = Field(
        default=200, ge=0, description="most steps of the relaxation; 0 leaves the structure alone"
    )
    temperature: float = Field(
        default=300.0, ge=0, description="K, to be reached after the relaxed start"
    )
    time_step: float = Field(default=2.0, gt=0, description="fs")
    steps: int = Field(default=500, gt=0, description="steps of the dynamics")
    every: int = Field(default=5, gt=0, description="steps between two frames of the trajectory")
    seed: int = Field(default=0, description="of the random initial velocities")


@dataclass(frozen=True)
class DynamicsResult:
    """What a run has shown; the content of dynamics.json."""

    model: dict[str, Any]  # parameters of the calculator, with the model's revision
    formula: str
    num_atoms: int
    relaxed: bool  # whether all forces fell below fmax
    relaxation_steps: int
    settings: dict[str, Any]
    drift_mev_per_atom_ps: float  # slope of the total energy against time, by least squares
    rms_mev_per_atom: float  # what remains around that line
    mean_temperature: float  # K
    time_ps: list[float]
    energy_mev_per_atom: list[float]  # total energy, relative to the start


def relax_and_run(
    atoms: Atoms, calculator: Calculator, out: Path, config: DynamicsConfig
) -> DynamicsResult:
    """Relax, run dynamics, and write trajectory.traj and dynamics.json into the folder `out`.

    `atoms` stays unchanged. Raises FileError when `out` cannot be written.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    # before the relaxation, so that a wrong path does not cost the time of one
    with file_errors(out):
        out.mkdir(parents=True, exist_ok=True)

    relaxation = FIRE(atoms, logfile=None)
    relaxed = bool(relaxation.run(fmax=config.fmax, steps=config.relax_steps))

    # half of the kinetic energy goes into the bonds as soon as the relaxed atoms move
    set_thermal_momenta(atoms, 2 * config.temperature, config.seed)
    # a moving centre of mass would count as temperature
    Stationary(atoms)
    times, energies, temperatures = _run(atoms, out / TRAJECTORY_FILE, config)

    # with consistent forces the slope is zero; the integrator's error remains around the line
    slope, offset = np.polyfit(times, energies, 1)
    result = DynamicsResult(
        model=dict(calculator.parameters),
        formula=atoms.get_chemical_formula(),
        num_atoms=len(atoms),
        relaxed=relaxed,
        relaxation_steps=relaxation.nsteps,
        settings=config.model_dump(),
        drift_mev_per_atom_ps=float(slope),
        rms_mev_per_atom=float(np.std(energies - slope * times - offset)),
        mean_temperature=float(np.mean(temperatures)),
        time_ps=times.tolist(),
        energy_mev_per_atom=(energies - energies[0]).tolist(),
    )
    with file_errors(out / RESULT_FILE):
        write_atomically(out / RESULT_FILE, json.dumps(asdict(result), indent=1))
    return result


def set_thermal_momenta(atoms: Atoms, temperature: float, seed: int) -> None:
    """Draw the momenta of all atoms from the Maxwell-Boltzmann distribution at `temperature` in K.

    Each component is normal with variance m k T. ASE has two functions for this, of which each is
    missing or deprecated in one of the versions that we allow.
    """
    random = np.random.default_rng(seed).standard_normal((len(atoms), 3))
    widths = np.sqrt(atoms.get_masses() * (units.kB * temperature))
    atoms.set_momenta(random * widths[:, None])


def _run(
    atoms: Atoms, trajectory_path: Path, config: DynamicsConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move `atoms`; returns times (ps), total energies (meV/atom) and temperatures (K)."""
    dynamics = VelocityVerlet(atoms, config.time_step * units.fs)
    times: list[float] = []
    energies: list[float] = []
    temperatures: list[float] = []

    def record() -> None:
        times.append(dynamics.get_time() / (1000 * units.fs))
        energies.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())

    dynamics.attach(record, interval=config.every)
    with (
        file_errors(trajectory_path),
        Trajectory(trajectory_path, "w", atoms) as trajectory,
        Progress(transient=True) as bar,
    ):
        task = bar.add_task("NVE", total=config.steps)
        dynamics.attach(trajectory.write, interval=config.every)
        dynamics.attach(lambda: bar.update(task, completed=dynamics.nsteps), interval=1)
        dynamics.run(config.steps)
    return np.array(times), 1000 * np.array(energies), np.array(temperatures)
