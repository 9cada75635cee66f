"""Settings of the physical checks: how much is computed, and what it is compared with."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from ase.data import atomic_numbers
from pydantic import Field, field_validator

from ...core.settings import Settings, SettingsError


Suite = Literal["quick", "standard", "full"]

# Picoseconds of dynamics by suite.
PICOSECONDS: dict[Suite, float] = {"quick": 1.0, "standard": 2.0, "full": 10.0}

# Setting -> the checks that read it. `suite`, `elements` and `seed` are accepted by all checks: if
# a check needs no random numbers, its result is the same for every seed.
READ_BY = {
    "checks": ("physics", "sanity"),
    "reference": ("crystals", "lattice"),
    "picoseconds": ("dynamics", "timestep"),
    "temperature": ("beads", "dynamics", "timestep"),
    "free_atoms": ("bound",),
    "structures": ("dynamics", "relaxations", "smoothness", "timestep"),
    "oracle": ("beads", "handedness", "locality", "mixing", "stationary", "vibrations"),
}


class SanityConfig(Settings):
    """Settings of `evenfield check sanity`, of `evenfield check physics` and of their checks."""

    suite: Suite = Field(
        default="standard",
        description="quick: few systems, 1 ps; standard: all systems, 2 ps; full: 10 ps",
    )
    checks: list[str] | None = Field(
        default=None, description="names of the checks to make, all by default"
    )
    elements: list[str] | None = Field(
        default=None, description="symbols to look at, by default all that the model knows"
    )
    reference: Literal["auto", "pbe", "experiment"] = Field(
        default="auto",
        description="lattice parameters to compare with, and whether volumes are judged by PBE; "
        "auto: pbe for a level with PBE in its name, else experiment",
    )
    picoseconds: float | None = Field(
        default=None, gt=0, le=1000, description="length of the dynamics, by default the suite's"
    )
    temperature: float = Field(
        default=300.0, gt=0, le=3000, description="of the dynamics and of the path integrals, K"
    )
    free_atoms: bool | None = Field(
        default=None,
        description="judge whether crystals lie below free atoms; by default only for other "
        "calculators, since reference energies of a regression are no energies of atoms",
    )
    structures: Path | None = Field(
        default=None,
        description="file of structures of yours, in any format of ASE, in place of the built-in "
        "ones in the checks that simulate any structure: dynamics, relaxations, smoothness and "
        "timestep",
    )
    oracle: str | None = Field(
        default=None,
        description="calculator of ASE to compare with, as module:name, in the checks that can: "
        "beads, handedness, locality, mixing, stationary and vibrations",
    )
    seed: int = Field(default=0, ge=0, description="of velocities, distortions and arrangements")

    @field_validator("elements")
    @classmethod
    def _check_elements(cls, elements: list[str] | None) -> list[str] | None:
        for symbol in elements or []:
            if atomic_numbers.get(symbol, 0) == 0:
                raise ValueError(f"{symbol!r} is not the symbol of an element")
        return elements

    def refuse_unread(self, checks: Collection[str]) -> None:
        """Raise SettingsError if a setting was given that none of `checks` reads."""
        for key, readers in READ_BY.items():
            if key in self.model_fields_set and not set(readers) & set(checks):
                raise SettingsError(
                    f"{key}={getattr(self, key)}: nothing here reads it",
                    remedy=f"leave it out, or make one of the checks {', '.join(readers)}",
                )

    @property
    def length(self) -> float:
        """Length of each dynamics in ps."""
        return self.picoseconds or PICOSECONDS[self.suite]

    def chosen(self, symbols: list[str]) -> list[str]:
        """The symbols to look at: those of `symbols` that the setting `elements` allows."""
        if self.elements is None:
            return symbols
        return [symbol for symbol in symbols if symbol in self.elements]

    def spread(self, symbols: list[str], most: int) -> list[str]:
        """Like `chosen`, but at most `most` (>= 2) symbols, evenly spaced in `symbols`."""
        known = self.chosen(symbols)
        if len(known) <= most:
            return known
        return [known[round(index * (len(known) - 1) / (most - 1))] for index in range(most)]
