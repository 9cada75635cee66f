"""A guard: rules that stop a simulation before its numbers mean nothing.

It is an observer of ASE, and looks after every step of whatever it is attached to: a dynamics in
any ensemble, a relaxation, a band of images.

    guard = Guard(atoms, GuardConfig(force_radius=1.0), file="stopped.traj")
    dynamics.attach(guard)
    dynamics.run(1000)          # raises GuardStop when a rule is broken

The rules about what the potential knows read the uncertainties of a calculator that was made with
`uncertainty=True` (model_zoo/uncertainty). The rules about the structure work with any calculator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io.trajectory import Trajectory
from ase.neighborlist import natural_cutoffs, neighbor_list
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..core.errors import EvenfieldError
from ..core.files import file_errors
from ..core.settings import Settings
from ..data_pipelines.neighbours import neighbour_list


# Atoms that a message names; a structure that has burst has many.
MOST_NAMED = 5
# Two atoms are bonded at the start if they are closer than their covalent radii times this.
BONDED = 1.25


class GuardConfig(Settings):
    """Rules that stop a simulation; those that are not given are not applied."""

    force_radius: float | None = Field(
        default=None,
        gt=0,
        description="eV/A; stop when the error of the force on an atom may be larger, with the "
        "probability of guard.coverage",
    )
    coverage: float = Field(
        default=0.9, gt=0, lt=1, description="probability with which a radius covers an error"
    )
    disagreement: float | None = Field(
        default=None,
        gt=0,
        description="eV/A; stop when the forces of two members of the committee on one atom differ "
        "by more",
    )
    distance: float | None = Field(
        default=None,
        gt=0,
        description="stop when an atom is further from the training atoms of its element, in "
        "feature space; 1 is typical of these",
    )
    bond_stretch: float | None = Field(
        default=None,
        gt=1,
        description="stop when a bond of the start is longer than its length there times this",
    )
    gap: float | None = Field(
        default=None,
        gt=0,
        description="A; stop when atoms are further than this from all others, so that there are "
        "more fragments than at the start",
    )
    temperature: float | None = Field(
        default=None, gt=0, description="K; stop when the atoms are hotter"
    )
    every: int = Field(
        default=1,
        gt=0,
        description="steps between two looks; with more than one, only looks compute uncertainties",
    )

    @property
    def needs_uncertainty(self) -> bool:
        """Whether a rule reads uncertainties of the calculator."""
        return any(
            rule is not None for rule in (self.force_radius, self.disagreement, self.distance)
        )

    @property
    def has_rules(self) -> bool:
        """Whether there is anything to look at."""
        others = (self.bond_stretch, self.gap, self.temperature)
        return self.needs_uncertainty or any(rule is not None for rule in others)


# rule, value, limit, atoms with the worst first
Broken = tuple[str, float, float, list[int]]


@dataclass(frozen=True)
class Reason:
    """Which rule was broken, by how much, and by which atoms."""

    rule: str
    """Key of `GuardConfig`."""
    value: float
    """The largest value, in the unit of the rule; infinite for what was never seen."""
    limit: float
    atoms: list[int]
    """The atoms that broke it, the worst first."""
    symbols: list[str]
    image: int | None = None
    """Which image of a band; None where there is one structure."""

    @property
    def text(self) -> str:
        """In words, on one line."""
        named = [
            f"{index} ({symbol})" for index, symbol in zip(self.atoms, self.symbols, strict=True)
        ]
        kind = "atom" if len(named) == 1 else "atoms"
        more = f" and {len(named) - MOST_NAMED} more" * (len(named) > MOST_NAMED)
        place = f"{kind} {', '.join(named[:MOST_NAMED])}{more}"
        if self.image is not None:
            place += f" of image {self.image}"
        text = WORDS[self.rule].format(value=f"{self.value:.4g}", place=place)
        return f"{text} (guard.{self.rule}={self.limit:g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: JSON has no infinity."""
        value = self.value if np.isfinite(self.value) else None
        return asdict(self) | {"value": value, "text": self.text}


WORDS = {
    "force_radius": "the force may be off by {value} eV/A on {place}",
    "disagreement": "forces of the committee differ by {value} eV/A on {place}",
    "distance": "a distance of {value} from the training atoms at {place}",
    "bond_stretch": "a bond has {value} times its length at {place}",
    "gap": "{place} left the others by more than {value} A",
    "temperature": "a temperature of {value} K, the fastest is {place}",
}
# rule -> what the calculator calls it in its results
RESULTS = {
    "force_radius": "forces_radius",
    "disagreement": "committee_disagreement",
    "distance": "distance",
}


class GuardStop(EvenfieldError):
    """A guard has stopped a simulation; `stopped_by` says why, `before` is the state before."""

    def __init__(self, reason: Reason, before: list[Atoms], flagged: list[Atoms]) -> None:
        """`before` is empty where the first look broke a rule."""
        super().__init__(
            reason.text,
            remedy="label such structures and learn from them, or set another limit",
        )
        self.stopped_by = reason
        self.before = before
        self.flagged = flagged


class GuardError(EvenfieldError):
    """A guard that cannot look at what it is to look at."""


class Guard:
    """Looks at one structure, or at the images of a band, each time that it is called."""

    def __init__(
        self,
        atoms: Atoms | Sequence[Atoms],
        config: GuardConfig,
        *,
        calculator: Calculator | None = None,
        file: Path | str | None = None,
    ) -> None:
        """The structure as it is now is the start, whose bonds and fragments are kept.

        calculator: what gives the uncertainties; by default the one of the atoms, from which
        nothing is computed twice. file: where the state before and the one that broke a rule are
        written, one after the other, as a trajectory of ASE.

        Raises GuardError where there is no rule.
        """
        if not config.has_rules:
            raise GuardError(
                "a guard without a rule sees nothing",
                remedy="set guard.force_radius, for example",
            )
        self.config = config
        self.images = [atoms] if isinstance(atoms, Atoms) else list(atoms)
        self._calculator = calculator
        self._file = None if file is None else Path(file)
        self._starts = [_Start(image, config) for image in self.images]
        self._before: list[Atoms] = []

    def __call__(self) -> None:
        """Raise GuardStop where a rule is broken, GuardError where one cannot be judged."""
        last = len(self.images) - 1
        for index, (image, start) in enumerate(zip(self.images, self._starts, strict=True)):
            # the ends of a band do not move, and need no calculator that knows its errors
            if last > 0 and index in (0, last):
                continue
            reason = self._broken(image, start, index if last else None)
            if reason is not None:
                flagged = [one.copy() for one in self.images]
                self._save(flagged)
                raise GuardStop(reason, self._before, flagged)
        # velocities go along, so that a dynamics can go on from here
        self._before = [image.copy() for image in self.images]

    def largest_radius(self) -> float | None:
        """Of the last look at one structure, in eV/A; None where nothing was computed."""
        calculator = self._calculator or self.images[0].calc
        radii = calculator.results.get("forces_radius")
        return None if radii is None else float(np.max(radii))

    def _broken(self, atoms: Atoms, start: _Start, image: int | None) -> Reason | None:
        """The first rule that a structure breaks."""
        config = self.config
        found: Broken | None = None
        # from the cheapest to the dearest; what has burst has no neighbours to search
        if config.temperature is not None:
            temperature = atoms.get_temperature()
            if not temperature <= config.temperature:
                speeds = np.linalg.norm(atoms.get_velocities(), axis=1)
                hottest = int(np.argmax(atoms.get_masses() * speeds**2))
                found = ("temperature", temperature, config.temperature, [hottest])
        if found is None and config.bond_stretch is not None:
            found = start.broken_bond(atoms, config.bond_stretch)
        if found is None and config.gap is not None:
            found = start.fragments(atoms, config.gap)
        if found is None and config.needs_uncertainty:
            found = self._uncertain(atoms)
        if found is None:
            return None
        rule, value, limit, indices = found
        symbols = [atoms.symbols[index] for index in indices]
        return Reason(rule, float(value), limit, indices, symbols, image)

    def _uncertain(self, atoms: Atoms) -> Broken | None:
        calculator = self._calculator or atoms.calc
        # computes what is not known yet for these positions, and nothing else
        calculator.get_property("forces", atoms)
        for rule, name in RESULTS.items():
            limit = getattr(self.config, rule)
            if limit is None:
                continue
            if name not in calculator.results:
                raise GuardError(
                    f"guard.{rule} needs {name}, which the calculator does not give",
                    remedy="make the calculator with uncertainty=True",
                )
            values = np.asarray(calculator.results[name])
            # the condition says what is good: NaN fails every comparison
            bad = np.flatnonzero(~(values <= limit))
            if len(bad):
                order = bad[np.argsort(-values[bad], kind="stable")]
                return rule, values[order[0]], limit, order.tolist()
        return None

    def _save(self, flagged: list[Atoms]) -> None:
        if self._file is None:
            return
        with file_errors(self._file), Trajectory(self._file, "w") as trajectory:
            for atoms in [*self._before, *flagged]:
                trajectory.write(atoms)


class _Start:
    """What is kept of a structure as it was when its guard was made."""

    def __init__(self, atoms: Atoms, config: GuardConfig) -> None:
        self._positions = atoms.positions.copy()
        self._crossed = np.zeros_like(self._positions)
        """(N, 3) cell vectors by which each atom has been wrapped since the start."""
        if config.bond_stretch is not None:
            cutoffs = natural_cutoffs(atoms, mult=BONDED)
            first, second, lengths, shifts = neighbor_list("ijdS", atoms, cutoffs)
            # each bond once, and none of an atom with its own image, which only the cell changes
            chosen = first < second
            self._pairs = (first[chosen], second[chosen], shifts[chosen])
            self._lengths = lengths[chosen]
        if config.gap is not None:
            self._num_fragments, self._fragments = _fragments_of(atoms, config.gap)

    def broken_bond(self, atoms: Atoms, limit: float) -> Broken | None:
        """The bond that has stretched most, if that is too much."""
        cell = atoms.cell.array
        if atoms.pbc.any():
            # nothing moves by half of a cell between two looks: what seems to was wrapped
            moved = atoms.cell.scaled_positions(atoms.positions - self._positions)
            self._crossed += np.where(atoms.pbc, np.rint(moved), 0.0)
            self._positions = atoms.positions.copy()
        unwrapped = atoms.positions - self._crossed @ cell
        first, second, shifts = self._pairs
        if not len(first):
            return None
        vectors = unwrapped[second] - unwrapped[first] + shifts @ cell
        stretch = np.linalg.norm(vectors, axis=1) / self._lengths
        worst = int(np.argmax(stretch))
        if stretch[worst] <= limit:
            return None
        return "bond_stretch", stretch[worst], limit, [int(first[worst]), int(second[worst])]

    def fragments(self, atoms: Atoms, gap: float) -> Broken | None:
        """The atoms that have left their fragments, if there are more than at the start."""
        number, now = _fragments_of(atoms, gap)
        if number <= self._num_fragments:
            return None
        left: list[int] = []
        for fragment in range(self._num_fragments):
            members = np.flatnonzero(self._fragments == fragment)
            # what is left of it is its largest piece
            largest = np.argmax(np.bincount(now[members]))
            left += members[now[members] != largest].tolist()
        return "gap", gap, gap, left


def _fragments_of(atoms: Atoms, gap: float) -> tuple[int, np.ndarray]:
    """Number of fragments, and the fragment (N,) of each atom; a fragment has no inner gaps."""
    (sender, receiver), _ = neighbour_list(atoms.positions, atoms.cell.array, atoms.pbc, gap)
    ones = np.ones(len(sender), dtype=bool)
    graph = coo_array((ones, (sender, receiver)), shape=(len(atoms), len(atoms)))
    number, of_atom = connected_components(graph, directed=False)
    return int(number), of_atom
