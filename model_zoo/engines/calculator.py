"""The ASE calculator of a model, for one level of theory.

It gives energy, forces, stress, per-atom energies, and the features in which the energy is linear.
The functions at the end are shared with the other engines.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.census.domain import LevelDomain
from ...data_pipelines.physics.errors import PhysicsError
from ...data_pipelines.physics.physics import Physics
from ...data_pipelines.physics.residual import other_charge
from ...data_pipelines.structure import Structure
from ..compile.compiled import compile_for_inference
from ..heads.description import HeadError
from ..heads.features import BatchFeatures
from ..heads.field import FieldHeads
from ..heads.head import Head, net_charge, without_dipole
from ..heads.results import ResultHeads
from ..package.folder import DTYPES
from ..package.levels import level_to_use
from ..package.record import ModelRecord
from ..potential.potential import Potential
from ..uncertainty.estimates import Estimator
from ..uncertainty.record import REMEDY, LevelUncertainty
from .domain_watch import DomainWatch, StructureWatch
from .errors import EngineError, UnseenElementError
from .verlet_list import VerletList


class EvenfieldCalculator(Calculator):
    """An ASE calculator, for example for dynamics, relaxation and phonons.

    On request, `results` also contains error estimates; see `model_zoo/uncertainty`. If a model was
    trained on labels minus physics, the physics is added here. Charges of the model or of its
    physics are in `results` too.

    Elements without training data at the level of theory are refused, because their energies would
    be guesses. The parameters that ASE writes into trajectories and databases name the model with
    its revision.
    """

    name = "evenfield"
    # ASE expects a list here
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    # the keys that `set` accepts; ASE itself would accept and store any key
    settable: tuple[str, ...] = ("level_of_theory", "dtype", "device", "skin", "field")

    def __init__(
        self,
        potential: Potential,
        record: ModelRecord,
        *,
        device: str = "cpu",
        level_of_theory: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        compiled: bool = False,
        reference: str | None = None,
        domains: Mapping[str, LevelDomain] | None = None,
        uncertainties: Mapping[str, LevelUncertainty] | None = None,
        coverage: float = 0.9,
        heads: Sequence[Head] | None = None,
        field: Sequence[float] | None = None,
        field_heads: FieldHeads | None = None,
    ) -> None:
        """Prepare a model for one level of theory; by default, the default level of the model.

        `dtype` is float32 or float64; the default is the dtype of the weights. `skin` is the margin
        of the Verlet list in A. `compiled` compiles the network at the first call, which pays off
        in long dynamics. `reference` is the name of the model, with its revision, that ASE writes.
        `domains` describes the training structures of the levels of theory. A structure outside of
        them causes a warning, at most one of each kind.

        `uncertainties` holds the uncertainty records of the levels of theory. With them, `results`
        also contains `energy_std` and `energy_radius` (eV), `forces_std` (N, 3), `forces_radius`
        (N,), `committee_disagreement` (N,) and `max_committee_disagreement` (eV/A), `distance` (N,)
        and `inside` (N,), and, if it is known, `stress_radius` (eV/A^3). A radius covers the error
        with probability `coverage`.

        `heads` predict other properties from the features of the network. Charges (N,) in e and a
        dipole (3,) in e*A appear in `results` under ASE's names, other properties under the names
        of their heads.

        `field` is a uniform electric field in V/A that acts on molecules through `field_heads`.
        Energy and forces then include the field, `dipole` includes the induced part, and `energies`
        is left out, because the field energy is not divided among atoms.

        Raises LevelError for an unknown level of theory, or if the model has several levels and no
        default; EngineError for an invalid device, dtype, skin, coverage or field, for a level
        without an uncertainty record if uncertainties are requested, and for `compiled` together
        with uncertainties; HeadError if `heads` is empty, if two heads predict the same property,
        and for a field without heads through which it acts; MissingPackageError if a package that
        the physics needs is not installed.
        """
        super().__init__()
        self._loaded = potential
        self._record = record
        self._domains = dict(domains or {})
        self._is_compiled = compiled
        self._uncertainties = uncertainties
        self._coverage = _checked_coverage(coverage)
        if compiled and uncertainties is not None:
            raise EngineError(
                "compiled=True and uncertainty=True exclude each other",
                remedy="leave one of them out",
            )
        physics = potential.config.physics
        self._physics = None if physics is None else Physics(physics)
        has_charges = physics is not None and physics.coulomb is not None
        if has_charges or potential.config.charges:
            self.implemented_properties = [*type(self).implemented_properties, "charges"]
        self._heads = None if heads is None else ResultHeads(heads)
        if self._heads is not None:
            # set on the instance, not the class: ASE requests only properties listed here
            known = dict.fromkeys([*self.implemented_properties, *self._heads.columns])
            self.implemented_properties = [name for name in known if name in all_outputs]
        self._field_heads = field_heads
        self._without_field = list(self.implemented_properties)
        self._configure(
            device=device, dtype=dtype, level_of_theory=level_of_theory, skin=skin, field=field
        )
        # ASE writes the parameters into trajectories and databases
        self.parameters["model"] = reference or record.name

    def set(self, **changes: Any) -> dict[str, Any]:
        """Change the level of theory, dtype, device, skin or field; returns what changed.

        Values are as in the constructor. Earlier results are discarded. Raises EngineError for any
        other key, and the errors of the constructor for an invalid value.
        """
        # ASE's constructor calls this without arguments
        if not changes:
            return {}
        unknown = sorted(set(changes) - set(self.settable))
        if unknown:
            raise EngineError(
                f"{', '.join(unknown)}: cannot be set",
                remedy=f"set {', '.join(self.settable)}, or make another calculator",
            )

        parameter = next(self.potential.parameters())
        now: dict[str, Any] = {
            "device": parameter.device,
            "dtype": _dtype_name(self.potential),
            "level_of_theory": self.level_of_theory,
            "skin": self.verlet_list.skin,
            "field": self.parameters["field"],
        }
        before = dict(self.parameters)
        self._configure(**(now | changes))
        self.reset()

        changed = {}
        for name, value in self.parameters.items():
            if before.get(name) != value:
                changed[name] = value
        return changed

    @property
    def level_of_theory(self) -> str:
        """The level of theory of the predictions; `set(level_of_theory=...)` changes it."""
        level: str = self.parameters["level_of_theory"]
        return level

    def _configure(
        self,
        *,
        device: str | torch.device,
        dtype: str | None,
        level_of_theory: str | None,
        skin: float,
        field: Sequence[float] | None,
    ) -> None:
        """Set up everything that depends on the settings."""
        # everything that can fail comes first, so that a failure changes nothing
        levels = self._loaded.config.levels_of_theory
        level = level_to_use(self._record, levels, level_of_theory, self._domains)
        verlet_list = VerletList(self._loaded.config.cutoff, skin)
        own_uncertainty = self._uncertainty_of(level)
        own_field = _checked_field(field, self._field_heads)
        potential = moved(self._loaded, device, dtype)
        if self._is_compiled:
            # a copy, because other calculators may share the model and must not be compiled
            potential = copy.deepcopy(potential)
            compile_for_inference(potential)

        self._estimator: Estimator | None = None
        if own_uncertainty is not None:
            self._estimator = Estimator(own_uncertainty, potential, levels.index(level))
            potential = self._estimator.potential
        self.potential = potential
        self.elements = trained_elements(self._record, level)
        self.verlet_list = verlet_list
        watch = DomainWatch.of(self._record, levels, level, self._domains)
        self._watch = None if watch is None else StructureWatch(watch, verlet_list)

        # the batch of the last structure, and its atomic numbers
        self._batch: Batch | None = None
        self._numbers = np.empty(0, int)
        self._field = own_field
        self.implemented_properties = list(self._without_field)
        if own_field is not None:
            self.implemented_properties.remove("energies")
            if "dipole" not in self.implemented_properties:
                self.implemented_properties.append("dipole")
        self.parameters.update(
            level_of_theory=level,
            dtype=_dtype_name(potential),
            field=None if own_field is None else own_field.tolist(),
        )

    # Forces need autograd in full precision, whatever torch modes the caller has set.
    @own_modes()
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`. As ASE expects, a stress needs a cell with three periodic directions.

        Raises UnseenElementError for an element without training data; GeometryError if no
        neighbours can be searched for; EngineError if a result is not finite; HeadError for an
        element that a head was fitted without, and for a periodic or charged structure in a field;
        PhysicsError if the model's physics or learned charges do not apply to the structure;
        PropertyNotImplementedError if a stress or dipole is requested that does not exist.
        """
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self._refuse_net_charge(self.atoms)
        batch = self._batch_of(self.atoms)
        with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
            prediction = self.potential(batch)

        energy = float(prediction.energy[0])
        self.results = {
            "energy": energy,
            # ASE's optimisers request it; without an electronic temperature, it is the energy
            "free_energy": energy,
            "energies": _numpy(prediction.atom_energies),
            "forces": _numpy(prediction.forces),
        }

        if prediction.charges is not None:
            self.results["charges"] = _numpy(prediction.charges)
        if self.atoms.pbc.all():
            stress = _numpy(prediction.stress)
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress[0])
        if self._physics is not None:
            self._add_physics(self._physics, self.atoms)

        field_results = self._add_field(batch, self.atoms)

        if not all(np.isfinite(value).all() for value in self.results.values()):
            self.results = {}
            refuse_results(batch)
        if self._estimator is not None:
            # after the check for finite results, because a radius may be infinite
            self.results |= self._estimator.results(batch, prediction, self._coverage)
        if self._heads is not None:
            self.results |= self._results_of_heads(self._heads, batch)
        # last, so that the dipole in the field replaces the dipole of the head
        self.results |= field_results
        if "stress" in (properties or []) and "stress" not in self.results:
            raise PropertyNotImplementedError(
                "stress needs a cell that is periodic in three directions"
            )
        if "dipole" in (properties or []) and "dipole" not in self.results:
            raise PropertyNotImplementedError(without_dipole(self.atoms))

    def _refuse_net_charge(self, atoms: Atoms) -> None:
        """Raise PhysicsError for a net charge, because learned charges always sum to zero."""
        if self._loaded.config.charges and net_charge(atoms):
            raise PhysicsError(
                f"has the net charge {net_charge(atoms):g}, and the charges of the model add up "
                "to zero",
                remedy="use a model without learned charges",
            )

    def _add_physics(self, physics: Physics, atoms: Atoms) -> None:
        """Add the physics that was subtracted from the training labels to the results."""
        # after an error, a prediction without physics must not look like a result
        learned = self.results
        self.results = {}
        fault = other_charge(atoms.info.get("charge"), physics.config)
        if fault is not None:
            raise PhysicsError(fault, remedy="load a model for this net charge")
        known = physics.of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        energy = learned["energy"] + known.energy
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": learned["energies"] + known.atom_energies,
            "forces": learned["forces"] + known.forces,
        }
        if known.stress is not None:
            results["stress"] = learned["stress"] + full_3x3_to_voigt_6_stress(known.stress)
        # charges come either from the physics or from the model, never both
        if known.charges is not None:
            results["charges"] = known.charges
        elif "charges" in learned:
            results["charges"] = learned["charges"]
        self.results = results

    def _add_field(self, batch: Batch, atoms: Atoms) -> dict[str, Any]:
        """Add the field to energy and forces, and return its other results by name."""
        if self._field is None:
            return {}
        assert self._field_heads is not None
        # after an error, a prediction without the field must not look like a result
        without = self.results
        self.results = {}
        terms = self._field_heads.terms(self.potential, batch, atoms, self._field)
        energy = without["energy"] + terms.energy
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": without["forces"] + terms.forces,
        }
        if "charges" in without:
            self.results["charges"] = without["charges"]
        found: dict[str, Any] = {"dipole": terms.dipole}
        if terms.polarizability is not None:
            found["polarizability"] = terms.polarizability
        return found

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation, including the net charge if it matters."""
        changed: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is None:
            return changed
        # ASE does not compare `atoms.info`, which holds the net charge
        asks_charge = self._heads is not None or self._field is not None
        of_heads = asks_charge and net_charge(atoms) != net_charge(self.atoms)
        stated = atoms.info.get("charge")
        has_charges = self._physics is not None or self._loaded.config.charges
        of_physics = has_charges and stated != self.atoms.info.get("charge")
        if of_heads or of_physics:
            changed.append("initial_charges")
        return changed

    def export_properties(self) -> Properties:
        """The results whose names ASE knows; it raises an error for any other name."""
        known = {name: value for name, value in self.results.items() if name in all_outputs}
        return Properties(known)

    @own_modes()
    def get_features(self, atoms: Atoms | None = None) -> np.ndarray:
        """The features (N, readout_size) in which the energy of every head is linear.

        They belong to `atoms`, or by default to the last calculated structure. Raises EngineError
        if there is none.
        """
        atoms = atoms if atoms is not None else self.atoms
        if atoms is None:
            raise EngineError("get_features() needs a structure", remedy="call get_features(atoms)")
        batch = self._batch_of(atoms)
        with torch.no_grad(), torch.autocast(batch.positions.device.type, enabled=False):
            vectors, tiles = self.potential.edge_vectors(batch)
            features = self.potential.features(batch.atomic_numbers, vectors, tiles)
        return _numpy(features)

    def _results_of_heads(self, heads: ResultHeads, batch: Batch) -> dict[str, Any]:
        """The predictions of the heads for the current structure."""
        assert self.atoms is not None
        return heads.results(BatchFeatures(self.potential, batch), self.atoms)

    def _uncertainty_of(self, level: str) -> LevelUncertainty | None:
        """The uncertainty record of a level, or None if uncertainties are not requested."""
        if self._uncertainties is None:
            return None
        # no fallback for ensemble members: they have other weights than the head they belong to
        own = self._uncertainties.get(level)
        if own is None:
            has = f"it has those of {', '.join(self._uncertainties)}; " * bool(self._uncertainties)
            raise EngineError(
                f"{self._record.name} has no record of the uncertainty of {level} with these "
                "weights",
                remedy=f"{has}{REMEDY}",
            )
        return own

    def _batch_of(self, atoms: Atoms) -> Batch:
        """The batch of one structure.

        In dynamics, successive calls have the same atoms, so only positions, cell and edges are
        replaced.
        """
        if self._batch is None or not np.array_equal(atoms.numbers, self._numbers):
            # elements are checked only when they change, not at every step
            check_elements(atoms.numbers, self.elements, self.level_of_theory)
            self._batch = self._new_batch(atoms)
            self._numbers = atoms.numbers.copy()

        batch = self._batch
        cell = atoms.cell.array
        edge_index, cell_shifts = self.verlet_list.edges(atoms.positions, cell, atoms.pbc)
        if self._watch is not None:
            self._watch.look(atoms.numbers, atoms.positions, cell, atoms.pbc)
        device = batch.atomic_numbers.device
        batch.positions = torch.tensor(atoms.positions, device=device)
        batch.cell = torch.tensor(cell, device=device).unsqueeze(0)
        batch.pbc = torch.tensor(atoms.pbc, device=device).unsqueeze(0)
        batch.edge_index = torch.as_tensor(edge_index, device=device)
        batch.cell_shifts = torch.as_tensor(cell_shifts, device=device)
        return batch

    def _new_batch(self, atoms: Atoms) -> Batch:
        structure = Structure.from_atoms(atoms, self.level_of_theory, "calculator")
        config = self.potential.config
        parameter = next(self.potential.parameters())
        batch = Batch.from_structure(
            structure, config.cutoff, config.levels_of_theory, parameter.dtype
        )
        return batch.to(parameter.device)


def _checked_coverage(coverage: float) -> float:
    """Return `coverage` if it is a probability, else raise EngineError."""
    # `not` refuses NaN too
    if not 0 < coverage < 1:
        raise EngineError(f"coverage={coverage}", remedy="give a number between 0 and 1")
    return coverage


def _checked_field(field: Sequence[float] | None, heads: FieldHeads | None) -> np.ndarray | None:
    """The field as an array (3,) in V/A, or None without a field.

    Raises EngineError for invalid numbers, and HeadError if there are no heads for a field.
    """
    if field is None:
        return None
    try:
        found = np.array(field, dtype=float)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    if found.shape != (3,) or not np.isfinite(found).all():
        raise EngineError(f"field={field!r}", remedy="give three numbers in V/A")
    if heads is None:
        raise HeadError(
            "the calculator was made without a field, and has no heads for one",
            remedy="make it with field=(0, 0, 0)",
        )
    return found


def _dtype_name(potential: Potential) -> str:
    parameter = next(potential.parameters())
    return str(parameter.dtype).removeprefix("torch.")


def _numpy(tensor: Tensor) -> np.ndarray:
    # ASE works in float64, whatever the dtype of the model
    return tensor.detach().cpu().double().numpy()


# --- shared with the other engines


def refuse_physics(potential: Potential, where: str) -> None:
    """Raise EngineError for a model with physics, because the engine `where` would omit it."""
    physics = potential.config.physics
    if physics is not None:
        raise EngineError(
            f"the model adds {physics.described} to its network, which {where} cannot do",
            remedy="use the calculator of ASE",
        )


def refuse_charges(potential: Potential, where: str) -> None:
    """Raise EngineError for a model with learned charges, which the engine `where` cannot use."""
    if potential.config.charges:
        raise EngineError(
            f"the model has charges whose interaction has no cutoff, which {where} cannot compute",
            remedy="use the calculator of ASE, torch-sim or i-PI",
        )


def refuse_results(batch: Batch) -> NoReturn:
    """Raise EngineError for results that are not finite, naming the two closest atoms."""
    distances = batch.edge_vectors().norm(dim=1)
    if len(distances) == 0:
        raise EngineError("the energy or a force of this structure is not finite")
    shortest = int(distances.argmin())
    sender, receiver = batch.edge_index[:, shortest].tolist()
    raise EngineError(
        f"the energy or a force is not finite: atoms {receiver} and {sender} are "
        f"{float(distances[shortest]):.2g} A apart",
        remedy="remove atoms that occur twice, and move others apart",
    )


# Tensors made in inference mode cannot be differentiated, but forces need derivatives.
@own_modes()
def moved(potential: Potential, device: str | torch.device, dtype: str | None) -> Potential:
    """The potential on a device and in a dtype, in evaluation mode.

    If nothing changes, the potential itself is returned. Otherwise a copy is returned, so that one
    model can serve engines with different dtypes. `dtype` is float32, float64, or None for the
    current dtype. Raises EngineError for any other dtype and for a device that does not exist.
    """
    parameter = next(potential.parameters())
    wanted = parameter.dtype if dtype is None else checked_dtype(dtype)
    place = checked_device(device)
    if place == parameter.device and wanted == parameter.dtype:
        return potential.eval()
    return copy.deepcopy(potential).to(device=place, dtype=wanted).eval()


def checked_device(name: str | torch.device) -> torch.device:
    """Return a device by name, such as cpu, cuda or cuda:1.

    Raises EngineError if this machine does not have it.
    """
    try:
        device = torch.device(name)
        # a missing device causes an error only when it is used
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        known = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise EngineError(
            f"device={str(name)!r}: not on this machine", remedy=f"it has {known}"
        ) from None
    return device


def checked_dtype(name: str) -> torch.dtype:
    """Return the dtype with the name float32 or float64; raise EngineError for any other name."""
    if name not in DTYPES:
        raise EngineError(f"dtype={name!r}", remedy="choose float32 or float64")
    return DTYPES[name]


def trained_elements(record: ModelRecord, level_of_theory: str) -> set[int]:
    """Atomic numbers of the elements that a level of theory was trained on."""
    symbols = record.trained_symbols(level_of_theory)
    return {chemical_symbols.index(symbol) for symbol in symbols}


def check_elements(numbers: np.ndarray, known: set[int], level_of_theory: str) -> None:
    """Raise UnseenElementError if any of the atomic numbers (N,) is not in `known`."""
    unseen = sorted(set(numbers.tolist()) - known)
    if unseen:
        names = ", ".join(chemical_symbols[number] for number in unseen)
        raise UnseenElementError(
            f"{names}: not among the {len(known)} elements that the model was trained on "
            f"at {level_of_theory}",
            remedy=f"fine-tune it on structures with {names} first",
        )
