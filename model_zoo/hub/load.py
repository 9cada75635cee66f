"""Load a model by reference.

A reference is a folder, a name of the zoo, or `owner/name[@revision]` on a folder hub or on the
Hugging Face hub. Loading pins it to a revision, and whatever is made with the model records the
pinned reference.
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
# each part may have 96 letters, as on the Hugging Face hub: file systems take 255
PART = r"[A-Za-z0-9][\w.-]{0,95}"
REFERENCE = re.compile(rf"(?P<repo>{PART}/{PART})(@(?P<revision>{PART}))?", re.ASCII)


@dataclass(frozen=True)
class LoadedModel:
    """A potential with its record, and the reference that pins it."""

    potential: Potential
    record: ModelRecord
    reference: str
    # errors on held-out structures
    evaluation: ErrorSummary | None = None
    # file name -> verified content of probe.extxyz and the like
    attachments: Mapping[str, bytes] = field(default_factory=dict)

    def level_to_use(self, asked: str | None = None) -> str:
        """The level of theory that was asked for, or the model's default.

        Raises LevelError when the model does not have it, or has several and no default.
        """
        levels = self.potential.config.levels_of_theory
        return level_to_use(self.record, levels, asked, self.domains)

    @property
    def domains(self) -> dict[str, LevelDomain]:
        """Level of theory -> where it has training structures, as far as the model knows."""
        return domains_of(self.attachments)

    @property
    def uncertainties(self) -> dict[str, LevelUncertainty]:
        """Level of theory -> how large its errors are, as far as the model knows."""
        from ..uncertainty.record import uncertainties_of

        return uncertainties_of(self.potential, self.attachments)

    @property
    def heads(self) -> dict[str, Head]:
        """Name -> head of another property, for those that hold for these weights."""
        from ..heads.record import heads_of

        return heads_of(self.potential, self.attachments)

    def predict(self, atoms: Atoms, name: str) -> Answer:
        """The property that the head `name` predicts, in its unit.

        A number, the probability of each class by its name, charges (N,) in e, a dipole (3,) in
        e*A, a vector (3,), or a tensor (3, 3), such as a polarizability in e*A^2/V. Of the atoms
        numbers (N,), vectors or forces (N, 3), or tensors (N, 3, 3).

        Raises HeadError where the model has no such head, for elements that the head was fitted
        without, and for the dipole of a periodic or charged structure.
        """
        head, features = self._head_on(atoms, name)
        return head.predict(features, atoms)

    def predict_spread(self, atoms: Atoms, name: str) -> float | np.ndarray:
        """The standard deviation of the error of `predict`, in the same unit; (N,) of the atoms.

        Raises what `predict` raises, and HeadError for a head that was fitted without a spread.
        """
        head, features = self._head_on(atoms, name)
        return head.predict_spread(features, atoms)

    def _head_on(self, atoms: Atoms, name: str) -> tuple[Head, CarriedFeatures]:
        """A head, and the features of a structure that it reads."""
        from ..heads.features import carried_features, in_place_of
        from ..heads.record import head_named

        head = head_named(self.potential, self.attachments, name)
        # before the network, for which an unknown element would be an index out of range
        head.places(atoms.numbers)
        potential = in_place_of(self.potential, head.own)
        (features,) = carried_features(potential, [atoms], head.description.features)
        return head, features

    @property
    def described_levels(self) -> list[str]:
        """A line about each level of theory: its elements, what it is for, how it was computed."""
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
        """An ASE calculator for one level of theory; by default the model's own default.

        `dtype` is float32 or float64; by default it is that of the weights. `skin`, in A, is the
        margin of the Verlet list: a larger one means fewer, but slower, neighbour searches.
        `compiled` compiles the network at the first call. That takes a minute, needs a C++
        compiler, and makes later calls about a quarter faster. `warn_outside` warns once of each
        way in which structures differ from all training structures of the level.

        `uncertainty` adds to the results how large their errors are, with radii that cover an error
        with a probability of `coverage`: `energy_std`, `energy_radius`, `forces_std`,
        `forces_radius`, `max_committee_disagreement`, `distance` and `inside`. The model must have
        a record of it.

        `heads` adds what the heads of other properties predict, all of them or those named: charges
        and dipole under ASE's names, so that `atoms.get_charges()` works, the others under their
        own. Raises HeadError where the model has none, or not those.

        `field`, in V/A, puts molecules into a uniform electric field: see `heads/field.py`. It acts
        through the dipole head of the model, and its polarizability head if there is one: those
        among `heads` where some are named. Raises HeadError without a dipole head.
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
        """An ASE calculator with the forces of a head, in place of derivatives of the energy.

        One pass through the network instead of two, and no energy conservation: see
        `engines/direct_forces.py`. Settings are as in `calculator`. Warns with
        NotConservativeWarning.

        Raises HeadError where the model has no such head, and EngineError for a model with physics.
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
        """d mu_a / d r_ib of a molecule in e, as (N, 3, 3), by the dipole head `name`.

        Raises HeadError where the model has no such head, for elements that it was fitted without,
        and for a periodic or charged structure.
        """
        from ..heads.field import polar_tensors

        return polar_tensors(*self._in_field(atoms, name, "dipole"))

    def raman_tensors(self, atoms: Atoms, name: str = "polarizability") -> np.ndarray:
        """d alpha_ab / d r_ic of a molecule in e*A/V, as (N, 3, 3, 3), by a polarizability head.

        Raises what `polar_tensors` raises.
        """
        from ..heads.field import raman_tensors

        return raman_tensors(*self._in_field(atoms, name, "polarizability"))

    def states(self, atoms: Atoms, name: str = "states") -> States:
        """Energies, forces and couplings of the electronic states of a structure.

        Raises HeadError where the model has no such head, and for elements that it was fitted
        without.
        """
        from ..heads.features import batch_of
        from ..heads.record import head_named
        from ..heads.states import states_of

        head = head_named(self.potential, self.attachments, name)
        return states_of(self.potential, batch_of(self.potential, [atoms]), atoms, head)

    def state_calculator(self, state: int = 0, name: str = "states") -> StateCalculator:
        """An ASE calculator of one electronic state, counted from 0, by a head of states.

        Raises HeadError where the model has no such head, and EngineError for a state that it has
        not.
        """
        from ..engines.state_calculator import StateCalculator
        from ..heads.record import head_named

        head = head_named(self.potential, self.attachments, name)
        return StateCalculator(self.potential, self.record, head, state)

    def _in_field(
        self, atoms: Atoms, name: str, kind: Kind
    ) -> tuple[Potential, Batch, Atoms, Head]:
        """What the derivatives of a head of a kind are made of."""
        from ..heads.features import batch_of
        from ..heads.record import head_named

        head = head_named(self.potential, self.attachments, name)
        head.require_kind(kind)
        head.places(atoms.numbers)
        return self.potential, batch_of(self.potential, [atoms]), atoms, head

    def _field_heads(self, names: bool | Sequence[str]) -> FieldHeads:
        """The heads that a field acts through."""
        from ..heads.field import FieldHeads

        return FieldHeads.among(self.chosen_heads(True if names is False else names) or [])

    def chosen_heads(self, names: bool | Sequence[str]) -> list[Head] | None:
        """All heads for True, those of some names, and None for False.

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

    `folder_hub` is the root of a folder hub; without it, the variable EVENFIELD_HUB names one, and
    without that the Hugging Face hub is used.

    Warns once, in one line, of a model that failed physical checks.

    Raises HubError when there is no such model, BadModelError when it must not be used.
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
    """The ASE calculator of a model, with the settings of `LoadedModel.calculator`.

    `direct_forces` names a head whose forces take the place of derivatives of the energy.

    Commands and programs that take a calculator as `module:name` take
    `evenfield.model_zoo:load_calculator` with `model` among its arguments.
    """
    loaded = load(model)
    if direct_forces is not None:
        return loaded.direct_force_calculator(direct_forces, **settings)
    return loaded.calculator(**settings)


def resolve(
    reference: str | Path, folder_hub: Path | str | None = None, *, force: bool = False
) -> tuple[Path, str | None]:
    """The folder of a reference, downloaded if necessary, and the pinned reference.

    The second is None for a folder or a zoo name, whose revision is known only when the folder has
    been read. `force` downloads again what the cache holds.
    """
    # a folder comes first: users name models that they have just trained
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
    """The error for a path without a model. No hub is asked: the name is not meant for one."""
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
    """The folder hub that was given, or the one of the environment; None: the Hugging Face hub."""
    return given or os.environ.get(FOLDER_HUB_VARIABLE)


def split_reference(reference: str) -> tuple[str, str | None]:
    """`owner/name[@revision]` in its two parts; HubError for anything else."""
    match = REFERENCE.fullmatch(reference)
    # `..` would lead out of the folder hub
    if not match or ".." in reference:
        raise HubError(
            "neither a folder nor a reference owner/name[@revision] nor a model of the zoo",
            file=reference,
            remedy=f"the zoo has {', '.join(zoo.names())}",
        )
    return match["repo"], match["revision"]
