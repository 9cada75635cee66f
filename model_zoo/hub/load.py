"""Load a model by reference.

A reference is a folder, a zoo name, or `owner/name[@revision]` on a folder hub or the Hugging Face
hub. Loading pins the reference to a revision. All results made with the model record the pinned
reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.addresses import local_path, looks_like_path, similar_names
from ...core.files import file_errors, special_kind
from ...data_pipelines.census.domain import LevelDomain
from ..evaluation.summary import ErrorSummary
from ..package.domain_record import domains_of
from ..package.folder import read_model_folder
from ..package.levels import described_levels, level_to_use
from ..package.record import ModelRecord
from ..package.sanity_record import warn_if_failed
from ..potential.potential import Potential
from ..zoo import named_models as zoo
from . import hugging_face
from .folder_hub import FolderHub
from .remote import HubError


if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

    from ...data_pipelines.batch import Batch
    from ..engines.calculator import EvenfieldCalculator
    from ..engines.direct_forces import DirectForceCalculator
    from ..engines.state_calculator import StateCalculator
    from ..heads.description import Kind
    from ..heads.field import FieldHeads
    from ..heads.head import Answer, Head
    from ..heads.states import States
    from ..network.interface import CarriedFeatures
    from ..uncertainty.record import LevelUncertainty

FOLDER_HUB_VARIABLE = "EVENFIELD_HUB"
# each part may have 96 characters, as on the Hugging Face hub; file systems allow 255
PART = r"[A-Za-z0-9][\w.-]{0,95}"
REFERENCE = re.compile(rf"(?P<repo>{PART}/{PART})(@(?P<revision>{PART}))?", re.ASCII)


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model: the potential, its record, and the pinned reference."""

    potential: Potential
    record: ModelRecord
    reference: str
    # errors on held-out structures
    evaluation: ErrorSummary | None = None
    # file name -> verified content of probe.extxyz and the like
    attachments: Mapping[str, bytes] = field(default_factory=dict)

    def level_to_use(self, asked: str | None = None) -> str:
        """The requested level of theory, or the default of the model.

        Raises LevelError if the model does not have the requested level, or if none is requested
        and the model has several levels and no default.
        """
        levels = self.potential.config.levels_of_theory
        return level_to_use(self.record, levels, asked, self.domains)

    @property
    def domains(self) -> dict[str, LevelDomain]:
        """Level of theory -> description of its training structures, if the model has one."""
        return domains_of(self.attachments)

    @property
    def uncertainties(self) -> dict[str, LevelUncertainty]:
        """Level of theory -> uncertainty record, if the model has one."""
        from ..uncertainty.record import uncertainties_of

        return uncertainties_of(self.potential, self.attachments)

    @property
    def heads(self) -> dict[str, Head]:
        """Name -> head for another property, for all heads that are valid for these weights."""
        from ..heads.record import heads_of

        return heads_of(self.potential, self.attachments)

    def predict(self, atoms: Atoms, name: str) -> Answer:
        """Predict a property with the head `name`, in the unit of the head.

        A property of the structure is a number, the class probabilities by name, a dipole (3,) in
        e*A, a vector (3,), or a tensor (3, 3), such as a polarizability in e*A^2/V. A per-atom
        property has the shape (N,), such as charges in e, (N, 3) for vectors and forces, or
        (N, 3, 3) for tensors.

        Raises HeadError if the model has no such head, for elements that the head was fitted
        without, and for the dipole of a periodic or charged structure.
        """
        head, features = self._head_on(atoms, name)
        return head.predict(features, atoms)

    def predict_spread(self, atoms: Atoms, name: str) -> float | np.ndarray:
        """The standard deviation of the error of `predict`, in the same unit.

        It is a number for a property of the structure, and (N,) for a per-atom property. Raises the
        errors of `predict`, and HeadError for a head that was fitted without a spread.
        """
        head, features = self._head_on(atoms, name)
        return head.predict_spread(features, atoms)

    def _head_on(self, atoms: Atoms, name: str) -> tuple[Head, CarriedFeatures]:
        """The head `name`, and the features of `atoms` that it reads."""
        from ..heads.features import carried_features, in_place_of
        from ..heads.record import head_named

        head = head_named(self.potential, self.attachments, name)
        # checked before the network runs, where an unknown element would be out of range
        head.places(atoms.numbers)
        potential = in_place_of(self.potential, head.own)
        (features,) = carried_features(potential, [atoms], head.description.features)
        return head, features

    @property
    def described_levels(self) -> list[str]:
        """One line per level of theory: its elements, what it is for, how it was computed."""
        levels = self.potential.config.levels_of_theory
        return described_levels(self.record, levels, self.domains)

    def calculator(
        self,
        device: str = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        compiled: bool = False,
        warn_outside: bool = True,
        uncertainty: bool = False,
        coverage: float = 0.9,
        heads: bool | Sequence[str] = False,
        field: Sequence[float] | None = None,
    ) -> EvenfieldCalculator:
        """Create an ASE calculator for one level of theory; by default, the model's default level.

        `dtype` is float32 or float64; the default is the dtype of the weights. `skin`, in A, is the
        margin of the Verlet list. A larger skin means fewer but slower neighbour searches.
        `compiled` compiles the network at the first call. This takes a minute, needs a C++
        compiler, and makes later calls about a quarter faster. With `warn_outside`, the calculator
        warns once about each way in which structures differ from the training structures.

        `uncertainty` adds error estimates to the results: `energy_std`, `energy_radius`,
        `forces_std`, `forces_radius`, `committee_disagreement`, `max_committee_disagreement`,
        `distance`, `inside` and, if it is known, `stress_radius`. A radius covers the error with
        probability `coverage`. The model must have an uncertainty record.

        `heads` adds the predictions of heads for other properties: True for all of them, or a list
        of names. Charges and dipole appear under ASE's names, so `atoms.get_charges()` works. Other
        properties appear under the names of their heads.

        `field` (3,), in V/A, puts molecules into a uniform electric field; see `heads/field.py`. It
        acts through the dipole head of the model, and through its polarizability head if there is
        one. If `heads` names some heads, only these are used.

        Raises the errors of `EvenfieldCalculator`, and HeadError if the model has no heads or lacks
        one of those named.
        """
        # ASE's calculators are needed only here; fine-tuning loads models without them
        from ..engines.calculator import EvenfieldCalculator

        return EvenfieldCalculator(
            self.potential,
            self.record,
            device=device,
            level_of_theory=level_of_theory,
            dtype=dtype,
            skin=skin,
            compiled=compiled,
            reference=self.reference,
            domains=self.domains if warn_outside else None,
            uncertainties=self.uncertainties if uncertainty else None,
            coverage=coverage,
            heads=self.chosen_heads(heads),
            field=field,
            field_heads=None if field is None else self._field_heads(heads),
        )

    def direct_force_calculator(
        self,
        head: str = "direct_forces",
        device: str = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        warn_outside: bool = True,
    ) -> DirectForceCalculator:
        """Create an ASE calculator that takes forces from a head instead of energy derivatives.

        It needs no backward pass, but does not conserve energy; see `engines/direct_forces.py`.
        Settings are as in `calculator`. It warns with NotConservativeWarning.

        Raises HeadError if the model has no such head, and EngineError for a model with physics.
        """
        from ..engines.direct_forces import DirectForceCalculator
        from ..heads.record import head_named

        return DirectForceCalculator(
            self.potential,
            self.record,
            head_named(self.potential, self.attachments, head),
            device=device,
            level_of_theory=level_of_theory,
            dtype=dtype,
            skin=skin,
            reference=self.reference,
            domains=self.domains if warn_outside else None,
        )

    def polar_tensors(self, atoms: Atoms, name: str = "dipole") -> np.ndarray:
        """Atomic polar tensors d mu_a / d r_ib of a molecule, (N, 3, 3) in e.

        They are derivatives of the dipole head `name`. Raises HeadError if the model has no such
        head, for elements that it was fitted without, and for a periodic or charged structure.
        """
        from ..heads.field import polar_tensors

        return polar_tensors(*self._in_field(atoms, name, "dipole"))

    def raman_tensors(self, atoms: Atoms, name: str = "polarizability") -> np.ndarray:
        """Raman tensors d alpha_ab / d r_ic of a molecule, (N, 3, 3, 3) in e*A/V.

        They are derivatives of the polarizability head `name`. Raises the errors of
        `polar_tensors`.
        """
        from ..heads.field import raman_tensors

        return raman_tensors(*self._in_field(atoms, name, "polarizability"))

    def states(self, atoms: Atoms, name: str = "states") -> States:
        """Energies, forces and couplings of the electronic states of a structure.

        Raises HeadError if the model has no such head, and for elements that it was fitted without.
        """
        from ..heads.features import batch_of
        from ..heads.record import head_named
        from ..heads.states import states_of

        head = head_named(self.potential, self.attachments, name)
        return states_of(self.potential, batch_of(self.potential, [atoms]), atoms, head)

    def state_calculator(self, state: int = 0, name: str = "states") -> StateCalculator:
        """Create an ASE calculator for one electronic state, counted from 0.

        `name` is a head for coupled states. Raises HeadError if the model has no such head, and
        EngineError for a state that does not exist.
        """
        from ..engines.state_calculator import StateCalculator
        from ..heads.record import head_named

        head = head_named(self.potential, self.attachments, name)
        return StateCalculator(self.potential, self.record, head, state)

    def _in_field(
        self, atoms: Atoms, name: str, kind: Kind
    ) -> tuple[Potential, Batch, Atoms, Head]:
        """The arguments of `polar_tensors` and `raman_tensors` in `heads/field.py`."""
        from ..heads.features import batch_of
        from ..heads.record import head_named

        head = head_named(self.potential, self.attachments, name)
        head.require_kind(kind)
        head.places(atoms.numbers)
        return self.potential, batch_of(self.potential, [atoms]), atoms, head

    def _field_heads(self, names: bool | Sequence[str]) -> FieldHeads:
        """The heads through which a field acts."""
        from ..heads.field import FieldHeads

        return FieldHeads.among(self.chosen_heads(True if names is False else names) or [])

    def chosen_heads(self, names: bool | Sequence[str]) -> list[Head] | None:
        """The chosen heads: all for True, a selection by name, or None for False.

        Raises HeadError for a name that the model does not have.
        """
        from ..heads.record import head_named

        if names is False:
            return None
        if names is True:
            return list(self.heads.values())
        listed = [names] if isinstance(names, str) else names
        return [head_named(self.potential, self.attachments, name) for name in listed]


def load(reference: str | Path, folder_hub: Path | str | None = None) -> LoadedModel:
    """Load a model by folder, zoo name or `owner/name[@revision]`.

    `folder_hub` is the root of a folder hub. It defaults to the environment variable EVENFIELD_HUB;
    if that is not set either, the Hugging Face hub is used.

    Warns once if the model failed physical checks.

    Raises HubError if there is no such model, and BadModelError if it must not be used.
    """
    folder, pinned = resolve(reference, folder_hub)
    model = read_model_folder(folder)
    pinned = pinned or f"{model.record.name}@{model.revision}"
    warn_if_failed(pinned, model.potential, model.attachments)
    return LoadedModel(
        potential=model.potential,
        record=model.record,
        reference=pinned,
        evaluation=model.evaluation,
        attachments=model.attachments,
    )


def load_calculator(
    model: str | Path, *, direct_forces: str | None = None, **settings: Any
) -> EvenfieldCalculator:
    """Load a model and return its ASE calculator.

    `settings` are those of `LoadedModel.calculator`. If `direct_forces` names a head, its forces
    replace the energy derivatives, and the settings are those of
    `LoadedModel.direct_force_calculator`.

    Commands and programs that accept a calculator as `module:name` can use
    `evenfield.model_zoo:load_calculator`, with `model` as an argument.
    """
    loaded = load(model)
    if direct_forces is not None:
        return loaded.direct_force_calculator(direct_forces, **settings)
    return loaded.calculator(**settings)


def resolve(
    reference: str | Path, folder_hub: Path | str | None = None, *, force: bool = False
) -> tuple[Path, str | None]:
    """The folder of a reference, downloaded if necessary, and the pinned reference.

    The pinned reference is None for a folder or a zoo name, because their revision is known only
    after reading the folder. With `force`, files in the cache are downloaded again. Raises HubError
    if there is no such model.
    """
    # folders come first, because users load models that they have just trained
    path = local_path(reference)
    special = special_kind(path)
    if special is not None:
        raise HubError(f"is {special}", file=path, remedy="name the folder of a model")
    with file_errors(str(reference)):
        is_folder = path.is_dir()
    if is_folder:
        return path, None
    if zoo.is_zoo_name(str(reference)):
        return zoo.find(str(reference)), None

    if isinstance(reference, Path) or looks_like_path(reference):
        raise _no_such_folder(str(reference))
    repo, revision = split_reference(reference)
    root = folder_hub_root(folder_hub)
    if root is None:
        folder, commit = hugging_face.fetch(repo, revision, force=force)
        return folder, f"{repo}@{commit}"

    hub = FolderHub(root)
    revision = hub.revision(repo, revision)
    return hub.fetch(repo, revision, force=force), f"{repo}@{revision}"


def _no_such_folder(name: str) -> HubError:
    """The error for a path without a model. No hub is contacted for a path."""
    path = local_path(name)
    if path.is_file():
        return HubError(
            "is a file", file=name, remedy="name the folder of the model, which holds this file"
        )
    similar = similar_names(path)
    if similar:
        remedy = f"did you mean {similar[0]}?"
    elif name.count("/") == 1 and REFERENCE.fullmatch(name):
        remedy = f"for the model {name} of a hub, name a revision: {name}@main"
    else:
        remedy = "name a folder that holds a saved model"
    return HubError("no such folder", file=name, remedy=remedy)


def folder_hub_root(given: Path | str | None) -> Path | str | None:
    """The given folder hub, else that of EVENFIELD_HUB; None means the Hugging Face hub."""
    return given or os.environ.get(FOLDER_HUB_VARIABLE)


def split_reference(reference: str) -> tuple[str, str | None]:
    """Split `owner/name[@revision]` into its two parts; raises HubError for anything else."""
    match = REFERENCE.fullmatch(reference)
    # `..` would lead out of the folder hub
    if not match or ".." in reference:
        raise HubError(
            "neither a folder nor a reference owner/name[@revision] nor a model of the zoo",
            file=reference,
            remedy=f"the zoo has {', '.join(zoo.names())}",
        )
    return match["repo"], match["revision"]
