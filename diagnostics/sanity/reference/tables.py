"""Read the reference tables of this folder; `__init__.py` names their sources."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path


FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class ElementalPhase:
    """A crystal of one element.

    volume: A^3/atom. bulk_modulus: GPa. above: meV/atom above the lowest phase of the element.
    """

    volume: float
    bulk_modulus: float
    above: float


@dataclass(frozen=True)
class Lattice:
    """A cubic crystal and its lattice parameters in A, by PBE and by experiment."""

    name: str
    structure: str
    pbe: float
    experiment: float

    def parameter(self, reference: str) -> float:
        """The lattice parameter in A by "pbe" or "experiment"."""
        return self.pbe if reference == "pbe" else self.experiment


@dataclass(frozen=True)
class Diatomic:
    """A molecule of two atoms and its bond length in A."""

    first: str
    second: str
    length: float

    @property
    def name(self) -> str:
        """The formula, such as CO or H2."""
        return f"{self.first}2" if self.first == self.second else f"{self.first}{self.second}"


@cache
def elemental_phases() -> dict[str, dict[str, ElementalPhase]]:
    """Symbol -> phase (fcc, bcc, sc or diamond) -> reference values of ACWF."""
    table: dict[str, dict[str, ElementalPhase]] = {}
    for row in _rows("elements.csv"):
        phase = ElementalPhase(
            float(row["volume_A3"]), float(row["bulk_modulus_GPa"]), float(row["above_lowest_meV"])
        )
        table.setdefault(row["element"], {})[row["phase"]] = phase
    return table


@cache
def lattices() -> tuple[Lattice, ...]:
    """All cubic crystals of lattices.csv."""
    return tuple(
        Lattice(row["name"], row["structure"], float(row["pbe_A"]), float(row["experiment_A"]))
        for row in _rows("lattices.csv")
    )


@cache
def diatomics() -> tuple[Diatomic, ...]:
    """All molecules of dimers.csv."""
    return tuple(
        Diatomic(row["first"], row["second"], float(row["length_A"])) for row in _rows("dimers.csv")
    )


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (FOLDER / name).open(newline="") as file:
        yield from csv.DictReader(file)
