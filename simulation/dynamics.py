"""Relax a structure and run dynamics at constant energy (NVE), with a guard if rules are given.

If the forces are the exact derivative of the energy, the total energy is conserved up to the error
of the integrator. Its drift therefore shows how consistent a model is. `guard.py` has the rules.
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

from ..core.errors import EvenfieldError
from ..core.files import FileError, file_errors, write_atomically
from ..core.settings import Settings
from ..core.thermal import set_thermal_momenta
from .guard import Guard, GuardConfig, GuardError, GuardStop


RESULT_FILE = "dynamics.json"
TRAJECTORY_FILE = "trajectory.traj"
# model and settings, written before anything is computed
REQUEST_FILE = "simulation.json"
# the last state that obeyed all rules of the guard, and the one that broke a rule
STOPPED_FILE = "stopped.traj"
OWN_FILES = frozenset({RESULT_FILE, TRAJECTORY_FILE, REQUEST_FILE, STOPPED_FILE})

# Beyond these limits, a dynamics has exploded. No bond survives 1e5 K, and a change of the total
# energy by more than 1 eV/atom means that the integration has failed.
MAX_TEMPERATURE = 1e5  # K, or ten times the requested temperature if that is higher
MAX_ENERGY_CHANGE = 1.0  # eV/atom


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
    seed: int = Field(default=0, ge=0, description="of the random initial velocities")
    guard: GuardConfig = GuardConfig()


class NothingMovesError(EvenfieldError):
    """The structure has no degree of freedom that could move."""


class ExplodedError(EvenfieldError):
    """The temperature or energy of a dynamics left all bounds, or the structure fell apart."""


@dataclass(frozen=True)
class DynamicsResult:
    """Results of a run; the content of dynamics.json."""

    model: dict[str, Any]  # parameters of the calculator, with the model's revision
    formula: str
    num_atoms: int
    relaxed: bool  # whether all forces fell below fmax
    relaxation_steps: int
    largest_force: float  # eV/A, after the relaxation
    completed_steps: int  # of the dynamics
    survival_ps: float  # time up to the last sound step, before the failure
    failure: str | None  # why the relaxation or the dynamics ended early
    guard: dict[str, Any] | None  # the rule that was broken, by how much and by which atoms
    settings: dict[str, Any]
    # the next three are None if a guard stopped the relaxation
    drift_mev_per_atom_ps: float | None  # least-squares slope of the total energy against time
    rms_mev_per_atom: float | None  # of the total energy around that line
    mean_temperature: float | None  # K
    time_ps: list[float]
    energy_mev_per_atom: list[float]  # total energy, relative to the start


def relax_and_run(
    atoms: Atoms,
    calculator: Calculator,
    out: Path,
    config: DynamicsConfig,
    judge: Calculator | None = None,
) -> DynamicsResult:
    """Relax, run dynamics, and write trajectory.traj and dynamics.json into the folder `out`.

    `atoms` is not changed. The guard takes uncertainties from `judge`, or by default from
    `calculator`.

    Raises NothingMovesError if nothing in the structure can move, FileError if `out` cannot be
    written, ExplodedError if the dynamics explodes, and GuardStop if a rule of the guard is broken;
    then stopped.traj is written too. The other files are written even if the run ends early, for
    example by Ctrl-C. They hold everything up to that point, and `failure` in dynamics.json gives
    the reason.
    """
    _check_something_moves(atoms)
    atoms = atoms.copy()
    atoms.calc = calculator
    # before the relaxation, so that a wrong path does not waste its time
    with file_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        request = {"model": dict(calculator.parameters), "settings": config.model_dump()}
        write_atomically(out / REQUEST_FILE, json.dumps(request, indent=1))
        # left by an earlier run with other settings
        (out / STOPPED_FILE).unlink(missing_ok=True)

    relaxation = FIRE(atoms, logfile=None)
    stop = _relax(relaxation, atoms, out, config, judge)
    # recomputed, because some versions of ASE report "converged" when the steps are used up
    largest_force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())

    # by equipartition, half of the kinetic energy becomes potential energy
    set_thermal_momenta(atoms, 2 * config.temperature, config.seed)
    # a moving centre of mass would count as temperature
    Stationary(atoms)
    run = _Run(atoms, config, _guard(atoms, out, config, judge))
    ended_by: BaseException | None = None
    if stop is None:
        try:
            run.write(out / TRAJECTORY_FILE)
        except EvenfieldError:
            # the trajectory cannot be written
            raise
        except BaseException as error:
            # Ctrl-C or any error of a calculator: keep results that may have taken hours
            run.failure = "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)
            ended_by = error
        if not run.energies:
            raise ended_by or ExplodedError(
                f"the dynamics exploded before its first step: {run.failure}",
                remedy="look at the relaxed structure, and whether the model knows its elements",
            )
        stop = run.stop
    times = np.array(run.times)
    energies = 1000 * np.array(run.energies)

    # with consistent forces the slope is zero, and only the integrator's error remains
    slope = 0.0
    offset = energies[0] if run.energies else 0.0
    if len(times) > 1:
        slope, offset = np.polyfit(times, energies, 1)
    steps = run.dynamics.nsteps
    survived = steps
    if run.failure is not None and ended_by is None:
        # do not count the last step, or the steps since the last check of the guard
        survived = max(steps - (1 if stop is None else config.guard.every), 0)
    result = DynamicsResult(
        model=dict(calculator.parameters),
        formula=atoms.get_chemical_formula(),
        num_atoms=len(atoms),
        relaxed=largest_force <= config.fmax,
        relaxation_steps=relaxation.nsteps,
        largest_force=largest_force,
        completed_steps=steps,
        survival_ps=survived * config.time_step / 1000,
        failure=run.failure if stop is None else stop.message,
        guard=None if stop is None else stop.stopped_by.to_dict(),
        settings=config.model_dump(),
        drift_mev_per_atom_ps=float(slope) if run.energies else None,
        rms_mev_per_atom=(
            float(np.std(energies - slope * times - offset)) if run.energies else None
        ),
        mean_temperature=float(np.mean(run.temperatures)) if run.energies else None,
        time_ps=times.tolist(),
        energy_mev_per_atom=(energies - energies[0]).tolist() if run.energies else [],
    )
    with file_errors(out / RESULT_FILE):
        write_atomically(out / RESULT_FILE, json.dumps(asdict(result), indent=1))
    if ended_by:
        raise ended_by
    if stop is not None:
        where = (
            f"the dynamics at step {steps}, after {result.survival_ps:.4g} ps"
            if run.energies
            else f"the relaxation at step {relaxation.nsteps}"
        )
        stop.message = f"the guard stopped {where}: {stop.message}"
        stop.remedy = (
            f"the state before it and the one that it stopped at are in {STOPPED_FILE}; label such "
            "structures and learn from them, or set another limit"
        )
        if not stop.before:
            stop.remedy = "the start itself is outside of the limits; set others, or another start"
        raise stop
    if run.failure is not None:
        raise ExplodedError(
            f"the dynamics exploded at step {steps}: {run.failure}",
            remedy="set a smaller time_step, or relax more; a model far from its training data "
            "explodes at any time step",
        )
    return result


def _guard(
    atoms: Atoms, out: Path, config: DynamicsConfig, judge: Calculator | None
) -> Guard | None:
    """A guard that uses the present atoms as its reference; None without rules."""
    if not config.guard.has_rules:
        return None
    return Guard(atoms, config.guard, calculator=judge, file=out / STOPPED_FILE)


def _relax(
    relaxation: FIRE, atoms: Atoms, out: Path, config: DynamicsConfig, judge: Calculator | None
) -> GuardStop | None:
    """Relax the atoms; returns the GuardStop if a guard stopped the relaxation, else None."""
    guard = _guard(atoms, out, config, judge)
    if guard is not None and config.relax_steps:
        relaxation.attach(guard, interval=config.guard.every)
    try:
        relaxation.run(fmax=config.fmax, steps=config.relax_steps)
    except GuardStop as stop:
        return stop
    return None


def _check_something_moves(atoms: Atoms) -> None:
    """Raise NothingMovesError if no atom can move, or if an atom has no positive mass."""
    if len(atoms) == 0:
        raise NothingMovesError("the structure has no atoms", remedy="give at least two")
    if len(atoms) < 2:
        # the centre of mass is fixed, which leaves no degree of freedom: the temperature is 0 / 0
        raise NothingMovesError(
            "a single atom has no dynamics, because the centre of mass does not move",
            remedy="repeat the cell, such as atoms * (3, 3, 3) in ASE",
        )
    masses = atoms.get_masses()
    if not (np.isfinite(masses).all() and (masses > 0).all()):
        raise NothingMovesError(
            f"atom {int(np.argmin(np.nan_to_num(masses)))} has no positive mass",
            remedy="remove the masses from the file: those of the elements are then taken",
        )
    if atoms.get_number_of_degrees_of_freedom() < 1:
        raise NothingMovesError(
            "constraints hold all of its atoms", remedy="remove constraints from the file"
        )


class _Run:
    """Dynamics at constant energy, with a record of times, energies and temperatures.

    times: ps. energies: total energies in eV/atom. temperatures: K. All are finite.
    failure: why the dynamics ended early, or None. stop: the GuardStop that ended it, or None.
    """

    def __init__(self, atoms: Atoms, config: DynamicsConfig, guard: Guard | None) -> None:
        self.atoms = atoms
        self.config = config
        self.guard = guard
        self.stop: GuardStop | None = None
        self.dynamics = VelocityVerlet(atoms, config.time_step * units.fs)
        self.times: list[float] = []
        self.energies: list[float] = []
        self.temperatures: list[float] = []
        self.failure: str | None = None

    def write(self, trajectory_path: Path) -> None:
        """Run the dynamics, and write a frame to the trajectory for each record.

        A failure of the dynamics is kept in `failure` and `stop`. GuardError and FileError are
        raised.
        """
        with (
            file_errors(trajectory_path),
            Trajectory(trajectory_path, "w", self.atoms) as trajectory,
            Progress(transient=True) as bar,
        ):
            task = bar.add_task("NVE", total=self.config.steps)

            def record() -> None:
                self._record()
                trajectory.write()

            dynamics = self.dynamics
            dynamics.attach(self._check, interval=1)
            dynamics.attach(record, interval=self.config.every)
            if self.guard is not None:
                # attached after the record, so that the first frame is recorded in any case
                dynamics.attach(self.guard, interval=self.config.guard.every)
            dynamics.attach(lambda: bar.update(task, completed=dynamics.nsteps), interval=1)
            try:
                dynamics.run(self.config.steps)
                # a run shorter than `every` needs a second point for the slope
                if len(self.times) < 2:
                    record()
            except (GuardError, FileError):
                # not a failure of the dynamics
                raise
            except GuardStop as stop:
                self.stop = stop
                self.failure = stop.message
            except EvenfieldError as error:
                # no neighbours, forces that are not finite, or the ExplodedError of _check
                self.failure = error.message

    def _record(self) -> None:
        self.times.append(self.dynamics.get_time() / (1000 * units.fs))
        self.energies.append(self.atoms.get_total_energy() / len(self.atoms))
        self.temperatures.append(self.atoms.get_temperature())

    def _check(self) -> None:
        """Raise ExplodedError as soon as later steps would be meaningless."""
        # `not <=` also catches NaN
        temperature = self.atoms.get_temperature()
        if not temperature <= max(MAX_TEMPERATURE, 10 * self.config.temperature):
            raise ExplodedError(f"a temperature of {temperature:.3g} K")

        if self.energies:
            change = self.atoms.get_total_energy() / len(self.atoms) - self.energies[0]
            if not abs(change) <= MAX_ENERGY_CHANGE:
                raise ExplodedError(f"the total energy is off by {change:.3g} eV/atom")
