"""Dynamics of about thirty systems: does any explode, fuse two atoms, or gain energy?

For a quarter of the time, a thermostat brings the system to its temperature. The rest is NVE, in
which the total energy must be conserved: it drifts if forces are not the derivative of the energy.
With a folder, the results of finished systems are stored, and the state of the running system is
stored every few hundred steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from ...core.errors import EvenfieldError
from ...core.thermal import set_thermal_momenta
from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import FAILURES
from ..sanity.choice import chosen_systems
from ..sanity.config import SanityConfig
from ..sanity.memory import Memory
from ..sanity.systems import PairDistances, System
from ..sanity.verdicts import failures, progress_bar, refusal_of_energy


DRIFT = 10.0  # meV/atom/ps, of the total energy
# A temperature above the target by this factor is an explosion.
HOT = 5.0
THERMOSTAT_SHARE = 0.25
THERMOSTAT_TIME = 50.0  # fs

# The atoms are checked every LOOK steps. The state is stored after every PART steps, a multiple of
# LOOK. The thermostat's random numbers are seeded for each part, so that a resumed run draws the
# same numbers.
LOOK = 20
PART = 200


def check(
    model: CheckedCalculator,
    settings: SanityConfig,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="keeps what is done, to go on after a stop")
    ] = None,
) -> CheckResult:
    """Does dynamics explode, fuse atoms or gain energy?

    Example: evenfield check dynamics evenfield-s elements=[Cu] suite=quick --level-of-theory EMT
    """
    calculator = model.calculator()
    refusal = refusal_of_energy(calculator)
    if refusal is not None:
        return refusal
    systems, skipped = chosen_systems(settings, model.symbols)
    memory = Memory.of(folder, model, settings)

    runs = []
    with progress_bar() as bar:
        task = bar.add_task("dynamics", total=len(systems))
        for system in systems:
            bar.update(task, description=f"dynamics: {system.name}")
            stored = memory.read(f"dynamics {system.name}")
            if stored is not None:
                run = Run(**stored)
            else:
                run = simulate(calculator, system, settings, memory)
                memory.write(f"dynamics {system.name}", asdict(run))
            runs.append(run)
            bar.advance(task)

    figures = [
        Figure("systems", len(runs), ""),
        Figure("length of each", settings.length, "ps"),
    ]
    lines = []
    if runs:
        broken = [f"{run.name} ({run.failure})" for run in runs if run.failure]
        drifting = [
            f"{run.name} {run.drift:+.0f} meV/atom/ps"
            for run in runs
            if not run.failure and not abs(run.drift) <= DRIFT
        ]
        for what, names in (
            ("systems that explode or fuse", broken),
            ("systems whose energy drifts", drifting),
        ):
            figure, named = failures(what, names)
            figures.append(figure)
            lines += named
        drifts = [abs(run.drift) for run in runs if not run.failure]
        if drifts:
            figures.append(Figure("largest drift", max(drifts), "meV/atom/ps"))
    return CheckResult(figures, lines, skipped)


@dataclass(frozen=True)
class Run:
    """How the dynamics of a system ended.

    failure: the reason, empty for a run that reached its end. drift: of the total energy in NVE,
    meV/atom/ps; NaN after a failure.
    """

    name: str
    steps: int
    failure: str
    drift: float


class Explosion(EvenfieldError):
    """The atoms are too hot or fused, or the energy is not finite."""


def simulate(calculator: Calculator, system: System, settings: SanityConfig, memory: Memory) -> Run:
    """Run one system until the end or a failure; continues from a stored state if there is one."""
    start = system.atoms()
    distances = PairDistances(start)
    looks = round(1000 * settings.length / system.time_step / LOOK)
    num_steps = max(2 * PART, LOOK * looks)
    # in whole parts, because a part is either thermostatted or NVE
    warm_steps = max(1, round(THERMOSTAT_SHARE * num_steps / PART)) * PART

    state = _State.of(memory.read(f"state {system.name}"))
    if state is None:
        # by equipartition, half of the kinetic energy becomes potential energy
        set_thermal_momenta(start, 2 * settings.temperature, settings.seed)
        Stationary(start, preserve_temperature=False)
        state = _State(0, start.positions, start.get_momenta(), [])
    atoms = start
    atoms.positions = state.positions
    atoms.set_momenta(state.momenta)
    atoms.calc = calculator

    steps = state.steps
    energies = list(state.energies)
    failure = ""
    while steps < num_steps and not failure:
        part = min(PART, num_steps - steps)
        is_warming = steps < warm_steps
        try:
            found = _part(atoms, system, settings, distances, part, steps if is_warming else None)
        except Explosion as error:
            failure = error.message
            break
        except FAILURES:
            failure = "no energy or forces"
            break
        steps += part
        energies += found
        state = _State(steps, atoms.positions, atoms.get_momenta(), energies)
        memory.write(f"state {system.name}", state.content())

    drift = np.nan
    if not failure:
        # one energy every LOOK steps
        times = np.arange(len(energies)) * LOOK * system.time_step / 1000
        drift = 1000 * float(np.polyfit(times, energies, 1)[0])
    return Run(system.name, steps, failure, drift)


@dataclass(frozen=True)
class _State:
    """The stored state of a run. energies: total energies in eV/atom since the start of NVE."""

    steps: int
    positions: np.ndarray
    momenta: np.ndarray
    energies: list[float]

    @classmethod
    def of(cls, content: dict[str, Any] | None) -> _State | None:
        """The inverse of `content`; None for None."""
        if content is None:
            return None
        return cls(
            content["steps"],
            np.array(content["positions"]),
            np.array(content["momenta"]),
            content["energies"],
        )

    def content(self) -> dict[str, Any]:
        """JSON-ready; JSON keeps every digit of a float64."""
        return {
            "steps": self.steps,
            "positions": self.positions.tolist(),
            "momenta": self.momenta.tolist(),
            "energies": self.energies,
        }


def _part(
    atoms: Atoms,
    system: System,
    settings: SanityConfig,
    distances: PairDistances,
    steps: int,
    warming_step: int | None,
) -> list[float]:
    """Run `steps` steps; returns total energies in eV/atom for NVE, and an empty list otherwise.

    warming_step: number of the first step if the thermostat is on; None for NVE.

    Raises Explosion if the energy is not finite, the atoms are too hot, or two of them are fused.
    """
    time_step = system.time_step * units.fs
    dynamics: Bussi | VelocityVerlet
    if warming_step is not None:
        dynamics = Bussi(
            atoms,
            time_step,
            temperature_K=settings.temperature,
            taut=THERMOSTAT_TIME * units.fs,
            rng=np.random.default_rng([settings.seed, warming_step]),
        )
    else:
        dynamics = VelocityVerlet(atoms, time_step)

    energies = []
    for _ in range(0, steps, LOOK):
        with np.errstate(all="ignore"):
            dynamics.run(LOOK)
        energy = float(atoms.get_total_energy()) / len(atoms)
        if not np.isfinite(energy):
            raise Explosion("energy is not finite")
        temperature = float(atoms.get_temperature())
        if temperature > HOT * settings.temperature:
            raise Explosion(f"{temperature:.0f} K")
        fused = distances.fused(atoms)
        if fused is not None:
            raise Explosion(fused)
        energies.append(energy)
    return energies if warming_step is None else []
