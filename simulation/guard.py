"""A guard: rules that stop a simulation before its results become meaningless.

A guard is an ASE observer. Attach it to a dynamics in any ensemble, to a relaxation, or to the
optimizer of a band of images (NEB), and it checks its rules after every step.

    guard = Guard(atoms, GuardConfig(force_radius=1.0), file="stopped.traj")
    dynamics.attach(guard)
    dynamics.run(1000)          # raises GuardStop when a rule is broken

The rules `force_radius`, `disagreement` and `distance` need the uncertainties of a calculator that
was made with `uncertainty=True` (model_zoo/uncertainty). The other rules work with any calculator.
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


# Most atoms that a message names: in a structure that has burst, many break a rule.
MOST_NAMED = 5
# Two atoms are bonded at the start if they are closer than the sum of their covalent radii times
# this factor.
BONDED = 1.25


class GuardConfig(Settings):
    """Rules that stop a simulation; a rule that is not given is not applied."""

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
        """Whether a rule needs uncertainties from the calculator."""
        return any(
            rule is not None for rule in (self.force_radius, self.disagreement, self.distance)
        )

    @property
    def has_rules(self) -> bool:
        """Whether at least one rule is given."""
        others = (self.bond_stretch, self.gap, self.temperature)
        return self.needs_uncertainty or any(rule is not None for rule in others)


# rule, value, limit, indices of the atoms with the worst first
Broken = tuple[str, float, float, list[int]]


@dataclass(frozen=True)
class Reason:
    """Which rule was broken, by how much, and by which atoms."""

    rule: str
    """Name of the rule, as in `GuardConfig`."""
    value: float
    """The largest value, in the unit of the rule; infinite for an atom unlike any seen before."""
    limit: float
    """The limit of the rule, in the same unit."""
    atoms: list[int]
    """Indices of the atoms that broke the rule, the worst first."""
    symbols: list[str]
    """Their chemical symbols, in the same order."""
    image: int | None = None
    """Index of the image in a band; None for a single structure."""

    @property
    def text(self) -> str:
        """The reason in words, on one line."""
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
        """JSON-ready; a value that is not finite becomes None, because JSON has no infinity."""
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
# rule -> key in the results of the calculator
RESULTS = {
    "force_radius": "forces_radius",
    "disagreement": "committee_disagreement",
    "distance": "distance",
}


class GuardStop(EvenfieldError):
    """A guard has stopped a simulation.

    stopped_by: the reason. before: the images at the last check that passed. flagged: the images
    that broke the rule. Both lists have one entry for a single structure.
    """

    def __init__(self, reason: Reason, before: list[Atoms], flagged: list[Atoms]) -> None:
        """`before` is empty if the first check already broke a rule."""
        super().__init__(
            reason.text,
            remedy="label such structures and learn from them, or set another limit",
        )
        self.stopped_by = reason
        self.before = before
        self.flagged = flagged


class GuardError(EvenfieldError):
    """A guard has no rule, or cannot evaluate one of its rules."""


class Guard:
    """Checks the rules for one structure, or for the images of a band, each time it is called."""

    def __init__(
        self,
        atoms: Atoms | Sequence[Atoms],
        config: GuardConfig,
        *,
        calculator: Calculator | None = None,
        file: Path | str | None = None,
    ) -> None:
        """Take the present structure as the start; its bonds and fragments are the reference.

        calculator: gives the uncertainties. By default it is the calculator of the atoms, whose
        results are reused.
        file: ASE trajectory, written when a rule is broken. It holds the state of the last check
        that passed, then the state that broke the rule.

        Raises GuardError if no rule is given.
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
        """Check all rules.

        Raises GuardStop if a rule is broken, GuardError if a rule cannot be evaluated, and
        FileError if `file` cannot be written.
        """
        last = len(self.images) - 1
        for index, (image, start) in enumerate(zip(self.images, self._starts, strict=True)):
            # the two ends of a band do not move, and need no calculator with uncertainties
            if last > 0 and index in (0, last):
                continue
            reason = self._broken(image, start, index if last else None)
            if reason is not None:
                flagged = [one.copy() for one in self.images]
                self._save(flagged)
                raise GuardStop(reason, self._before, flagged)
        # copies keep the momenta, so that a dynamics can continue from this state
        self._before = [image.copy() for image in self.images]

    def largest_radius(self) -> float | None:
        """Largest force radius in eV/A from the last check; None if none was computed.

        Reads the results of `calculator`, or else of the first image.
        """
        calculator = self._calculator or self.images[0].calc
        radii = calculator.results.get("forces_radius")
        return None if radii is None else float(np.max(radii))

    def _broken(self, atoms: Atoms, start: _Start, image: int | None) -> Reason | None:
        """The first rule that a structure breaks; None if it breaks none."""
        config = self.config
        found: Broken | None = None
        # cheap rules first; a burst structure that breaks one needs no neighbour search
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
        # computes only if these positions have no results yet
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
            # `~(<=)` also catches NaN
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
    """Bonds and fragments of a structure at the moment when its guard was made."""

    def __init__(self, atoms: Atoms, config: GuardConfig) -> None:
        self._positions = atoms.positions.copy()
        self._crossed = np.zeros_like(self._positions)
        """(N, 3) number of cell vectors by which each atom has been wrapped since the start."""
        if config.bond_stretch is not None:
            cutoffs = natural_cutoffs(atoms, mult=BONDED)
            first, second, lengths, shifts = neighbor_list("ijdS", atoms, cutoffs)
            # each bond once; a bond of an atom with its own image changes only with the cell
            chosen = first < second
            self._pairs = (first[chosen], second[chosen], shifts[chosen])
            self._lengths = lengths[chosen]
        if config.gap is not None:
            self._num_fragments, self._fragments = _fragments_of(atoms, config.gap)

    def broken_bond(self, atoms: Atoms, limit: float) -> Broken | None:
        """The bond that has stretched most if it exceeds `limit`, else None.

        limit: largest allowed ratio of the length to the length at the start.
        """
        cell = atoms.cell.array
        if atoms.pbc.any():
            # no atom moves by half a cell between two checks: a larger shift means it was wrapped
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
        """The atoms that left their fragments, if there are more fragments than at the start.

        gap: A. None if there are not.
        """
        number, now = _fragments_of(atoms, gap)
        if number <= self._num_fragments:
            return None
        left: list[int] = []
        for fragment in range(self._num_fragments):
            members = np.flatnonzero(self._fragments == fragment)
            # the largest piece counts as the fragment, and the atoms of other pieces have left it
            largest = np.argmax(np.bincount(now[members]))
            left += members[now[members] != largest].tolist()
        return "gap", gap, gap, left


def _fragments_of(atoms: Atoms, gap: float) -> tuple[int, np.ndarray]:
    """Number of fragments, and the fragment index (N,) of each atom.

    Atoms closer than `gap` (A) belong to the same fragment.
    """
    (sender, receiver), _ = neighbour_list(atoms.positions, atoms.cell.array, atoms.pbc, gap)
    ones = np.ones(len(sender), dtype=bool)
    graph = coo_array((ones, (sender, receiver)), shape=(len(atoms), len(atoms)))
    number, of_atom = connected_components(graph, directed=False)
    return int(number), of_atom
