"""Settings of the analytic physics, and the hash by which data sets and models compare them.

The settings contain every number that the energy depends on, so equal hashes mean equal physics.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ase.data import chemical_symbols
from pydantic import Field, field_validator, model_validator

from ...core.settings import Settings


# s8, a1 and a2 (Bohr) of D3 with Becke-Johnson damping, as listed by the simple-dftd3 library from
# the original papers; s6 is 1 for all
FUNCTIONALS = {
    "b3lyp": (1.9889, 0.3981, 4.4211),
    "blyp": (2.6996, 0.4298, 4.2359),
    "bp": (3.2822, 0.3946, 4.8516),
    "hse06": (2.31, 0.383, 5.685),
    "pbe": (0.7875, 0.4289, 4.4407),
    "pbe0": (1.2177, 0.4145, 4.8593),
    "pbesol": (2.9491, 0.4466, 6.1742),
    "r2scan": (0.78981345, 0.49484001, 5.73083694),
    "revpbe": (2.355, 0.5238, 3.5016),
    "revpbe0": (1.7588, 0.4679, 3.7619),
    "rpbe": (0.8318, 0.182, 4.0094),
    "scan": (0.0, 0.538, 5.42),
    "tpss": (1.9435, 0.4535, 4.4752),
}
DAMPING = ("s8", "a1", "a2")

# Least ratio of the cutoff to the width of a Gaussian charge. The real-space part of the Ewald sum
# has decayed to 1e-12 of 1/r at the cutoff. Beyond it, Gaussians must be indistinguishable from
# point charges, because their difference is cut off there.
WIDTHS_IN_CUTOFF = 10.0


class DispersionConfig(Settings):
    """Pairwise D3 dispersion with Becke-Johnson damping, without the three-body term.

    Grimme, Ehrlich and Goerigk, J. Comput. Chem. 32, 1456 (2011).
    """

    functional: str | None = Field(
        default=None, description=f"sets s8, a1 and a2: {', '.join(FUNCTIONALS)}"
    )
    s6: float = Field(default=1.0, ge=0, description="scale of the r^-6 term")
    s8: float = Field(ge=0, description="scale of the r^-8 term")
    a1: float = Field(ge=0, description="damping radius over sqrt(C8/C6)")
    a2: float = Field(gt=0, description="constant part of the damping radius, Bohr")
    cutoff: float = Field(
        default=15.0,
        ge=5,
        le=60,
        description="A; pairs further apart are left out, smoothly within the last 0.53 A",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_functional(cls, given: Any) -> Any:
        """Fill in s8, a1 and a2 of the functional, and refuse other values next to it."""
        if not isinstance(given, dict) or given.get("functional") is None:
            return given
        name = str(given["functional"]).lower()
        if name not in FUNCTIONALS:
            known = ", ".join(FUNCTIONALS)
            raise ValueError(
                f"functional={name} is not known: use one of {known}, or set s8, a1 and a2"
            )
        own = dict(zip(DAMPING, FUNCTIONALS[name], strict=True))
        for key, value in own.items():
            if given.get(key, value) != value:
                raise ValueError(
                    f"functional={name} has {key}={value}: leave functional out for other numbers"
                )
        return own | given | {"functional": name}


class CoulombConfig(Settings):
    """Gaussian charges at the atoms, either fixed or equilibrated.

    Equilibration minimises sum_i (chi_i q_i + eta_i q_i^2 / 2) + Coulomb energy, including the
    self-energy of the Gaussians (Ko, Finkler, Goedecker and Behler, Nat. Commun. 12, 398 (2021)).
    """

    charges: dict[str, float] = Field(
        default={}, description="element -> fixed charge, e; periodic cells must be neutral"
    )
    electronegativity: dict[str, float] = Field(
        default={}, description="element -> chi, eV/e; charges equilibrate"
    )
    hardness: dict[str, float] = Field(
        default={}, description="element -> eta, eV/e^2, of the same elements"
    )
    net_charge: float = Field(
        default=0.0, description="sum of charges that equilibrate, e; not 0 for molecules only"
    )
    width: float = Field(
        default=0.5, gt=0, le=5, description="standard deviation of the Gaussian charges, A"
    )
    widths: dict[str, float] = Field(
        default={}, description="element -> a width of its own, A, instead of width"
    )
    cutoff: float = Field(
        default=8.0, gt=0, le=60, description="A; where the Ewald sum is divided, not its range"
    )
    mesh_spacing: float | None = Field(
        default=None,
        gt=0,
        description="A; particle-mesh Ewald for large cells; empty for the exact Ewald sum",
    )

    @field_validator("charges", "electronegativity", "hardness", "widths")
    @classmethod
    def _check_symbols(cls, values: dict[str, float]) -> dict[str, float]:
        unknown = [symbol for symbol in values if symbol not in chemical_symbols[1:119]]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not an element symbol")
        return values

    @field_validator("hardness", "widths")
    @classmethod
    def _check_positive(cls, values: dict[str, float]) -> dict[str, float]:
        low = [symbol for symbol, value in values.items() if value <= 0]
        if low:
            raise ValueError(f"{low[0]}: must be above 0")
        return values

    @model_validator(mode="after")
    def _check_together(self) -> CoulombConfig:
        if bool(self.charges) == bool(self.electronegativity):
            raise ValueError("set either charges or electronegativity with hardness")
        if self.electronegativity.keys() != self.hardness.keys():
            raise ValueError("electronegativity and hardness must name the same elements")
        if self.charges and self.net_charge:
            raise ValueError("net_charge belongs to electronegativity: charges have a sum already")
        if self.equilibrates and self.mesh_spacing is not None:
            raise ValueError("mesh_spacing belongs to charges: leave it out to equilibrate them")
        largest = max([self.width, *self.widths.values()])
        if self.cutoff < WIDTHS_IN_CUTOFF * largest:
            needed = WIDTHS_IN_CUTOFF * largest
            raise ValueError(f"cutoff={self.cutoff:g} is too short for the widths: set {needed:g}")
        return self

    @property
    def equilibrates(self) -> bool:
        """Whether the charges are equilibrated, and so depend on the structure."""
        return bool(self.electronegativity)


class PhysicsConfig(Settings):
    """The analytic physics next to a model; terms that are not set are absent."""

    dispersion: DispersionConfig | None = Field(
        default=None, description="D3(BJ) dispersion, as in dispersion.functional=pbe"
    )
    coulomb: CoulombConfig | None = Field(
        default=None, description="charges, as in coulomb.charges={Na: 1, Cl: -1}"
    )

    @model_validator(mode="after")
    def _check_any(self) -> PhysicsConfig:
        if self.dispersion is None and self.coulomb is None:
            raise ValueError("set dispersion or coulomb, or leave physics out")
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 of all settings; equal hashes mean equal energies."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def described(self) -> str:
        """A short description of the terms, with the first 8 digits of the hash."""
        terms = []
        if self.dispersion is not None:
            terms.append(f"D3(BJ) {self.dispersion.functional or 'of its own numbers'}")
        if self.coulomb is not None:
            kind = "equilibrated" if self.coulomb.equilibrates else "fixed"
            terms.append(f"{kind} charges")
        return f"{' and '.join(terms)} ({self.sha256[:8]})"


def described(config: PhysicsConfig | None) -> str:
    """A short description of the physics, or of its absence, for messages."""
    return "no physics" if config is None else config.described
