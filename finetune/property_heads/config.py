"""The settings of `evenfield finetune head`."""

from __future__ import annotations

import re
from typing import Literal, Self

from ase.outputs import all_outputs
from pydantic import Field, model_validator

from ...core.settings import Settings
from ...model_zoo.heads.description import (
    KINDS,
    NAME,
    Features,
    Kind,
    check_choices,
    check_name,
)


# Default numbers of random functions. For a pseudoscalar, 256 functions predicted fewer correct
# signs on molecules of unseen compositions. For forces, which have many labels, 512 functions
# lowered the errors on ethanol and water by a quarter and a sixth.
DEFAULT_FUNCTIONS: dict[Kind, int] = {"pseudoscalar": 1024, "forces": 256}


class NetworkTraining(Settings):
    """How the separate network of a head is trained, for network=trained."""

    max_steps: int = Field(default=4000, gt=0, description="optimizer steps")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak, reached after the warm-up")
    structures: int = Field(default=16, gt=0, description="structures of a step")
    left_out: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the structures to learn from that the best step is chosen by",
    )


class HeadConfig(Settings):
    """Settings of a head: the property, its labels, its features, and what is held out."""

    head: Kind = Field(description="what is predicted")
    key: str | None = Field(
        default=None,
        description="label in the file: a key of the results, info or arrays of ASE; charges, "
        "dipole, polarizability and forces are found by themselves",
    )
    name: str | None = Field(
        default=None, description="how the head is asked for; the key when not given"
    )
    unit: str | None = Field(
        default=None,
        description="unit of the labels: e; e*A, Debye or e*Bohr; of a polarizability e*A^2/V, A^3 "
        "or Bohr^3; of forces as eV/A or Hartree/Bohr; else any text. Needed where the key is not "
        "ASE's own",
    )
    extensive: bool = Field(
        default=False,
        description="the scalar or pseudoscalar is a sum over atoms, and not their mean",
    )
    spread: bool = Field(
        default=False,
        description="learn as well how large the errors are; not of charges, a class, states or "
        "forces",
    )
    skip_unlabelled: bool = Field(
        default=False, description="leave out structures that have no such label, and count them"
    )
    couplings: str | None = Field(
        default=None,
        description="of states: key of derivative couplings <k|d/dr l> in the arrays, three "
        "numbers of an atom for each pair of states, in the order 01, 02, 12, 03 and so on; "
        "structures may lack them",
    )
    couplings_unit: Literal["1/A", "1/Bohr"] | None = Field(
        default=None, description="unit of the couplings"
    )
    torque: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="of forces: weight of the net torque on a molecule, which should be zero; by "
        "default 1",
    )
    level_of_theory: str | None = Field(
        default=None,
        description="how the labels were made; by default what the info of all structures says",
    )
    licence: str | None = Field(default=None, description="licence of the labels, for the card")
    held_out: float = Field(
        default=0.2, gt=0, lt=1, description="share of the structures that errors are measured on"
    )
    split: Literal["composition", "structure"] = Field(
        default="composition", description="what is never on both sides of the split"
    )
    seed: int = Field(default=0, ge=0, description="draws the structures that are held out")
    features: Features | None = Field(
        default=None,
        description="network: all invariants; readout: those of the readout of energies; "
        "equivariant: those of the network, its vectors and tensors, and random functions of them. "
        "By default network, and equivariant where nothing else can be",
    )
    num_functions: int | None = Field(
        default=None,
        ge=0,
        le=8192,
        description="random functions among equivariant features; by default 1024 for a "
        "pseudoscalar, which is made of them, 256 for forces, which have many labels, and none for "
        "others, where they help only with thousands of structures",
    )
    network: Literal["frozen", "trained"] = Field(
        default="frozen",
        description="trained: a copy of the network is trained on the labels, for this head alone; "
        "minutes instead of seconds, and a second pass in a prediction. It needs about a thousand "
        "structures",
    )
    training: NetworkTraining = NetworkTraining()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.key is None and KINDS[self.head].label is None:
            raise ValueError(f"key: name the label that head={self.head} learns, as in key=gap")
        if not re.fullmatch(NAME, self.head_name):
            raise ValueError(
                f"name: {self.head_name!r} is no name of letters, digits and underscores: give "
                "another one with name="
            )
        check_name(self.head_name, self.head)
        check_choices(self.head, self.head_features, extensive=self.extensive, spread=self.spread)
        if self.network == "trained" and not KINDS[self.head].is_linear:
            raise ValueError(f"network: head={self.head} has no network of its own: leave it out")
        if self.network == "trained" and self.head_features == "readout":
            raise ValueError("features: network=trained trains no readout: leave features out")
        if self.network == "trained" and self.spread:
            # a spread is learned from errors on structures that a fit has left out
            raise ValueError(
                "spread: network=trained has seen all structures, so that it would be too small: "
                "leave one of them out"
            )
        if self.network == "frozen" and self.training != NetworkTraining():
            raise ValueError("training: set network=trained, which it belongs to")
        if self.torque is not None and self.head != "forces":
            raise ValueError("torque: only head=forces has one: leave it out")
        if self.couplings is not None and self.head != "states":
            raise ValueError("couplings: only head=states has them: leave it out")
        if (self.couplings is None) != (self.couplings_unit is None):
            raise ValueError("couplings_unit: state it with couplings, as in couplings_unit=1/Bohr")
        if self.num_functions and self.head_features != "equivariant":
            raise ValueError("num_functions: set features=equivariant, which has them")
        if self.head == "pseudoscalar" and self.num_functions == 0:
            raise ValueError("num_functions: a pseudoscalar is made of them: give 1 or more")
        self._check_unit()
        return self

    def _check_unit(self) -> None:
        units = KINDS[self.head].units
        if self.head == "class":
            if self.unit is not None:
                raise ValueError("unit: classes have none: leave it out")
            return
        if self.unit is None:
            is_of_ase = self.label_key in all_outputs
            if not is_of_ase or self.label_key != KINDS[self.head].label:
                example = "eV" if units is None else " or ".join(list(units)[:4])
                raise ValueError(f"unit: state that of {self.label_key!r}, as in unit={example}")
            return
        if units is not None and self.unit not in units:
            raise ValueError(f"unit: {self.unit!r} is not known: choose {', '.join(units)}")

    @property
    def label_key(self) -> str:
        """The key under which the label is found in the results, info or arrays of ASE."""
        key = self.key or KINDS[self.head].label
        assert key is not None, "checked with the settings"
        return key

    @property
    def head_name(self) -> str:
        """The name of the head: `name`, else the key or the kind's own name."""
        if self.name is not None:
            return self.name
        columns = KINDS[self.head].columns
        return self.key or (columns[0] if columns else self.label_key)

    @property
    def head_features(self) -> Features:
        """The features in which the head is linear: as set, or the default of its kind."""
        return self.features or KINDS[self.head].features[0]

    @property
    def head_functions(self) -> int:
        """Number of random functions of the head: as set, or the default of its kind."""
        if self.num_functions is not None:
            return self.num_functions
        return DEFAULT_FUNCTIONS.get(self.head, 0)

    @property
    def torque_weight(self) -> float:
        """Weight of the net torque on a molecule, relative to a component of a force."""
        return 1.0 if self.torque is None else self.torque

    @property
    def factor(self) -> float:
        """Conversion factor from the unit of the labels to the unit of the head."""
        units = KINDS[self.head].units
        return 1.0 if units is None or self.unit is None else units[self.unit]

    @property
    def head_unit(self) -> str:
        """The unit of the predictions."""
        units = KINDS[self.head].units
        if units is None:
            assert self.unit is not None
            return self.unit
        return next(iter(units))
