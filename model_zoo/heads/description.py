"""What a head predicts, how the property transforms, and which data the head was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from ase.data import chemical_symbols
from ase.outputs import all_outputs
from pydantic import Field, field_validator, model_validator

from ...core.errors import EvenfieldError
from ...core.settings import Settings
from ...core.units import CHARGE, DIPOLE, ENERGY, FORCES, POLARIZABILITY


Kind = Literal[
    "charges",
    "dipole",
    "scalar",
    "class",
    "vector",
    "tensor",
    "polarizability",
    "pseudoscalar",
    "atom_scalar",
    "atom_vector",
    "atom_tensor",
    "forces",
    "states",
]
# "network": invariants of all layers of the network.
# "readout": the hidden layer of the readout, in which the energy is linear.
# "equivariant": invariants, vectors and tensors of the network, and random functions of them.
Features = Literal["network", "readout", "equivariant"]

# A head's name becomes a key of `results`. These keys already have a meaning there.
RESERVED = frozenset(all_outputs) | {
    "committee_disagreement",
    "direct_forces",
    "distance",
    "energy_radius",
    "energy_std",
    "forces_radius",
    "forces_std",
    "inside",
    "max_committee_disagreement",
    "stress_radius",
}
NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"


class HeadError(EvenfieldError):
    """A model has no such head, or a head cannot predict a structure."""


@dataclass(frozen=True)
class HeadKind:
    """What all heads of a kind have in common."""

    meaning: str
    per: Literal["structure", "atom"]
    rank: int
    """0 for a scalar, 1 for a vector, 2 for a symmetric tensor."""
    parity: Literal[1, -1]
    """The sign of the property under inversion."""
    units: Mapping[str, float] | None
    """Possible units of labels, as conversion factors to the first one; None if the user names the
    unit."""
    columns: tuple[str, ...] = ()
    """Entries of `results` that a head of this kind can fill; empty means the head's own name."""
    label: str | None = None
    """The key under which ASE stores labels of this kind; None if the user names the key."""
    features: tuple[Features, ...] = ("network", "readout")
    """The features that it can be linear in; the first is the default."""
    can_be_mean: bool = False
    """Whether the property may be a mean over atoms as well as a sum."""
    can_be_partial: bool = False
    """Whether some atoms of a structure may lack a label."""
    can_have_spread: bool = False
    """Whether the size of the errors can be learned as well."""
    is_linear: bool = True
    """Whether labels are linear in the weights. If so, a network can be trained with the head."""


KINDS: dict[Kind, HeadKind] = {
    "charges": HeadKind(
        meaning="charge of each atom; they add up to the net charge",
        per="atom",
        rank=0,
        parity=1,
        units=CHARGE,
        columns=("charges",),
        label="charges",
    ),
    "dipole": HeadKind(
        meaning="dipole moment of charges that are fitted to it",
        per="structure",
        rank=1,
        parity=-1,
        units=DIPOLE,
        columns=("dipole", "charges"),
        label="dipole",
        features=("network", "readout", "equivariant"),
        can_have_spread=True,
    ),
    "scalar": HeadKind(
        meaning="a number of the structure",
        per="structure",
        rank=0,
        parity=1,
        units=None,
        can_be_mean=True,
        can_have_spread=True,
    ),
    "class": HeadKind(
        meaning="probabilities of named classes",
        per="structure",
        rank=0,
        parity=1,
        units={"probability": 1.0},
        is_linear=False,
    ),
    "vector": HeadKind(
        meaning="a polar vector of the structure, summed over its atoms",
        per="structure",
        rank=1,
        parity=-1,
        units=None,
        features=("equivariant",),
        can_have_spread=True,
    ),
    "tensor": HeadKind(
        meaning="a symmetric tensor of the structure, summed over its atoms",
        per="structure",
        rank=2,
        parity=1,
        units=None,
        features=("equivariant",),
        can_have_spread=True,
    ),
    "polarizability": HeadKind(
        meaning="dipole moment that a field induces, by the field",
        per="structure",
        rank=2,
        parity=1,
        units=POLARIZABILITY,
        columns=("polarizability",),
        label="polarizability",
        features=("equivariant",),
        can_have_spread=True,
    ),
    "pseudoscalar": HeadKind(
        meaning="a number that changes sign in the mirror",
        per="structure",
        rank=0,
        parity=-1,
        units=None,
        features=("equivariant",),
        can_be_mean=True,
        can_have_spread=True,
    ),
    "atom_scalar": HeadKind(
        meaning="a number of each atom",
        per="atom",
        rank=0,
        parity=1,
        units=None,
        can_be_partial=True,
        can_have_spread=True,
    ),
    "atom_vector": HeadKind(
        meaning="a polar vector of each atom",
        per="atom",
        rank=1,
        parity=-1,
        units=None,
        features=("equivariant",),
        can_be_partial=True,
        can_have_spread=True,
    ),
    "atom_tensor": HeadKind(
        meaning="a symmetric tensor of each atom",
        per="atom",
        rank=2,
        parity=1,
        units=None,
        features=("equivariant",),
        can_be_partial=True,
        can_have_spread=True,
    ),
    "forces": HeadKind(
        meaning="forces that are derivatives of no energy: they do not conserve it",
        per="atom",
        rank=1,
        parity=-1,
        units=FORCES,
        columns=("direct_forces",),
        label="forces",
        features=("equivariant",),
    ),
    "states": HeadKind(
        meaning="energies of coupled electronic states, eigenvalues of a small matrix",
        per="structure",
        rank=0,
        parity=1,
        units=ENERGY,
        is_linear=False,
    ),
}

MOST_STATES = 8


class HeadDescription(Settings):
    """Everything about a head except its weights."""

    name: str = Field(pattern=rf"^{NAME}$", description="how the head is asked for")
    kind: Kind = Field(description="what it predicts")
    unit: str = Field(max_length=40, description="unit of its predictions")
    extensive: bool = Field(
        default=False,
        description="a sum over the atoms instead of their mean; of scalars and pseudoscalars only",
    )
    classes: list[str] = Field(default=[], description="names of the classes, in order")
    num_states: int = Field(default=0, ge=0, le=MOST_STATES, description="states that are coupled")
    features: Features = Field(description="what the prediction is linear in")
    num_functions: int = Field(
        default=0, ge=0, le=8192, description="random functions among equivariant features"
    )
    trained_steps: int = Field(
        default=0,
        ge=0,
        description="steps by which a network of its own was trained; 0 for that of the model",
    )
    spread: bool = Field(
        default=False, description="says how large its errors are, with weights for that"
    )
    level_of_theory: str = Field(description="how the labels were computed or measured")
    data: str = Field(description="name of the file of labels")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of the file of labels")
    licence: str | None = Field(default=None, description="licence of the labels")
    num_structures: int = Field(ge=1, description="structures that the weights were fitted to")
    num_held_out: int = Field(ge=1, description="structures that the errors were measured on")
    split: Literal["composition", "structure"] = Field(
        description="what was never on both sides of the split"
    )
    elements: list[str] = Field(min_length=1, description="symbols that the fit has seen")
    silent_elements: list[str] = Field(
        default=[], description="those of which no atom had a label: they get NaN"
    )
    regularisation: float = Field(ge=0, description="penalty that the fit chose")
    errors: dict[str, float] = Field(description="figure -> its value on held-out structures")
    guess: dict[str, float] = Field(
        description="the same figures of a trivial guess: the mean, or the frequencies"
    )

    @field_validator("elements", "silent_elements")
    @classmethod
    def _are_symbols(cls, elements: list[str]) -> list[str]:
        unknown = sorted(set(elements) - set(chemical_symbols[1:]))
        if unknown:
            raise ValueError(f"{unknown[0]} is no element")
        return elements

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_name(self.name, self.kind)
        check_choices(self.kind, self.features, extensive=self.extensive, spread=self.spread)
        if self.num_functions and self.features != "equivariant":
            raise ValueError("num_functions: only equivariant features have some")
        if self.trained_steps and not KINDS[self.kind].is_linear:
            raise ValueError(f"trained_steps: a {self.kind} head has no network of its own")
        if not set(self.silent_elements) < set(self.elements):
            raise ValueError("silent_elements: some of the elements, and not all")
        if self.silent_elements and not KINDS[self.kind].can_be_partial:
            raise ValueError(f"silent_elements: each atom of a {self.kind} head has an answer")
        if (self.kind == "class") != (len(self.classes) >= 2):
            raise ValueError("classes: a class head has two or more, the others none")
        if (self.kind == "states") != (self.num_states >= 2):
            raise ValueError("num_states: a head of states has two or more, the others none")
        return self

    @property
    def per(self) -> str:
        """What the property belongs to: "structure" or "atom"."""
        return KINDS[self.kind].per

    @property
    def rank(self) -> int:
        """0 for a scalar, 1 for a vector, 2 for a symmetric tensor."""
        return KINDS[self.kind].rank

    @property
    def parity(self) -> int:
        """The sign of the property under inversion."""
        return KINDS[self.kind].parity

    @property
    def num_outputs(self) -> int:
        """K, the number of outputs per atom."""
        if self.kind == "states":
            return self.num_states * (self.num_states + 1) // 2
        return max(len(self.classes), 1)


def check_name(name: str, kind: Kind) -> None:
    """Raise ValueError for a name that has another meaning in `results`."""
    if name in RESERVED and name not in KINDS[kind].columns:
        raise ValueError(f"name: {name!r} has another meaning in results: choose another name=")


def check_choices(kind: Kind, features: Features, *, extensive: bool, spread: bool) -> None:
    """Raise ValueError if a kind does not support these features, a sum or a spread."""
    about = KINDS[kind]
    if features not in about.features:
        raise ValueError(f"features: {kind} can have {', '.join(about.features)}, not {features}")
    if extensive and not about.can_be_mean:
        raise ValueError(f"extensive: {kind} has no such choice: leave it out")
    if spread and not about.can_have_spread:
        raise ValueError(f"spread: {kind} cannot have one: leave it out")
