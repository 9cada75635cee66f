"""Relax a structure and run microcanonical dynamics; the drift of the energy shows whether forces are its slope."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from pydantic import Field
from rich.progress import Progress

from ..core.files import write_atomically
from ..core.settings import Settings


class DynamicsConfig(Settings):
    """Relaxation, then NVE."""

    fmax: float = Field(default=0.02, gt=0, description="eV/A, relaxed when no force is larger")
    relax_steps: int = Field(default=200, ge=0)
    temperature: float = Field(default=300.0, ge=0, description="K, of the initial velocities")
    time_step: float = Field(default=2.0, gt=0, description="fs")
    steps: int = Field(default=500, gt=0)
    every: int = Field(default=5, gt=0, description="steps between frames written")
    seed: int = 0


def relax_and_run(
    atoms: Atoms, calculator: Calculator, out: Path, config: DynamicsConfig
) -> dict[str, Any]:
    """Relax, run NVE, write trajectory.traj and dynamics.json into `out`; returns the content of the latter.

    The drift is the slope of total energy per atom against time (meV/atom/ps), by least squares; the rms is what
    remains about that line (meV/atom).
    """
    out.mkdir(parents=True, exist_ok=True)
    atoms = atoms.copy()
    atoms.calc = calculator
    relaxation = FIRE(atoms, logfile=None)
    converged = bool(relaxation.run(fmax=config.fmax, steps=config.relax_steps))
    rng = np.random.default_rng(config.seed)
    MaxwellBoltzmannDistribution(
        atoms, temperature_K=2 * config.temperature, rng=rng
    )  # half of it goes to bonds
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, config.time_step * units.fs)
    times, energies, temperatures = [], [], []

    def record() -> None:
        times.append(dynamics.get_time() / (1000 * units.fs))
        energies.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())

    dynamics.attach(record, interval=config.every)
    with (
        Trajectory(out / "trajectory.traj", "w", atoms) as trajectory,
        Progress(transient=True) as bar,
    ):
        task = bar.add_task("NVE", total=config.steps)
        dynamics.attach(trajectory.write, interval=config.every)
        dynamics.attach(lambda: bar.update(task, completed=dynamics.nsteps), interval=1)
        dynamics.run(config.steps)
    time, energy = np.array(times), 1000 * np.array(energies)
    slope, offset = np.polyfit(time, energy, 1)
    content = {
        "model": dict(calculator.parameters),  # with its revision
        "formula": atoms.get_chemical_formula(),
        "num_atoms": len(atoms),
        "relaxed": converged,
        "relaxation_steps": relaxation.nsteps,
        "settings": config.model_dump(),
        "drift_mev_per_atom_ps": float(slope),
        "rms_mev_per_atom": float(np.std(energy - slope * time - offset)),
        "mean_temperature": float(np.mean(temperatures)),
        "time_ps": time.tolist(),
        "energy_mev_per_atom": (energy - energy[0]).tolist(),
    }
    write_atomically(out / "dynamics.json", json.dumps(content, indent=1))
    return content
