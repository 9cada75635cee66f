"""The ASE calculator of a model, for one level of theory.

It gives energy, forces, stress, per-atom energies, and the features that the energy is linear in.
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
    """Use a model wherever ASE takes a calculator: dynamics, relaxation, phonons.

    On request, `results` also holds how large the errors are: see `model_zoo/uncertainty`. A model
    that was trained on labels minus physics has the physics added here, and its charges, if it has
    any, are in `results` too.

    Elements that the level of theory never saw in training are refused, because their energies
    would be guesses. What ASE writes about the calculator into trajectories and databases names
    the model with its revision.
    """

    name = "evenfield"
    # ASE reads a list here
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    # what `set` can change; ASE accepts any key, and would only note it
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
        """Prepare a model for one level of theory; by default the model's own default.

        `dtype` is float32 or float64; by default it is that of the weights. `skin` is the margin of
        the Verlet list in A. `compiled` compiles the network at the first call, which pays for long
        dynamics. `reference` pins the model in what ASE writes. `domains` says where the levels of
        theory have training structures; once of each kind, structures outside are warned of.

        `uncertainties` are those of the levels of theory; with them, `results` also holds
        `energy_std` and `energy_radius` (eV), `forces_std` (N, 3), `forces_radius` (N,) and
        `max_committee_disagreement` (eV/A), `distance` (N,) and `inside` (N,). The radii cover an
        error with a probability of `coverage`.

        `heads` predict other properties from the features of the same network. Charges (N,) in e
        and a dipole (3,) in e*A are in `results` under ASE's names, the others under their own.

        `field` is a uniform electric field in V/A that acts on molecules through `field_heads`.
        Energy and forces are then those in the field, `dipole` has the part that it induces, and
        `energies` of atoms are left out, since a field gives none to an atom.

        Raises LevelError for an unknown level of theory and where a model of several has no
        default, EngineError for an unknown dtype, skin or coverage, for a level without a record of
        its uncertainty where one is asked for, and for a compiled network with uncertainties.
        Raises HeadError for no heads where some are asked for, for two of the same property, and
        for a field without heads that it acts through.
        Raises MissingPackageError for physics whose package is not installed.
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
            # of this calculator alone: ASE asks it for no other property
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

        Values are those of the constructor. Results for the settings before are forgotten.
        Raises EngineError for any other key, and for a value that the model lacks.
        """
        # ASE's constructor calls this without anything to set
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
        """The head that answers; `set(level_of_theory=...)` changes it."""
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
        """Everything that follows from the settings."""
        # first all that can be refused, so that a refusal changes nothing
        levels = self._loaded.config.levels_of_theory
        level = level_to_use(self._record, levels, level_of_theory, self._domains)
        verlet_list = VerletList(self._loaded.config.cutoff, skin)
        own_uncertainty = self._uncertainty_of(level)
        own_field = _checked_field(field, self._field_heads)
        potential = moved(self._loaded, device, dtype)
        if self._is_compiled:
            # a copy: the model may drive other calculators, which did not ask for it
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

        # the batch of the last structure, and the atomic numbers that it was made for
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

    # Forces are derivatives: they need autograd, in full precision, whatever mode the caller is in.
    @own_modes()
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results`; as ASE expects, a stress only if all three directions are periodic.

        Raises UnseenElementError, GeometryError for a structure without neighbours to search,
        EngineError when a result is not finite, HeadError for an element that a head was fitted
        without and for a periodic or charged structure in a field, PhysicsError for a structure
        that the model's physics or learned charges do not fit, and PropertyNotImplementedError when
        a stress or a dipole is asked for that does not exist.
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
            # ASE's optimisers ask for it; without an electronic temperature it is the energy
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
            # after the check: a radius is infinite where nothing is known
            self.results |= self._estimator.results(batch, prediction, self._coverage)
        if self._heads is not None:
            self.results |= self._results_of_heads(self._heads, batch)
        # last: the dipole in the field, and not that of the head alone
        self.results |= field_results
        if "stress" in (properties or []) and "stress" not in self.results:
            raise PropertyNotImplementedError(
                "stress needs a cell that is periodic in three directions"
            )
        if "dipole" in (properties or []) and "dipole" not in self.results:
            raise PropertyNotImplementedError(without_dipole(self.atoms))

    def _refuse_net_charge(self, atoms: Atoms) -> None:
        """Raise PhysicsError for a net charge, which learned charges do not have."""
        if self._loaded.config.charges and net_charge(atoms):
            raise PhysicsError(
                f"has the net charge {net_charge(atoms):g}, and the charges of the model add up "
                "to zero",
                remedy="use a model without learned charges",
            )

    def _add_physics(self, physics: Physics, atoms: Atoms) -> None:
        """Make the results those of the whole: the network has learned what physics leaves."""
        # nothing of the network alone may look like a result
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
        # charges are learned or of the physics, never both
        if known.charges is not None:
            results["charges"] = known.charges
        elif "charges" in learned:
            results["charges"] = learned["charges"]
        self.results = results

    def _add_field(self, batch: Batch, atoms: Atoms) -> dict[str, Any]:
        """Add the field to energy and forces; what else it gives, by its name in `results`."""
        if self._field is None:
            return {}
        assert self._field_heads is not None
        # nothing without the field may look like a result
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
        """What changed since the last calculation, the net charge too where something uses it."""
        changed: list[str] = super().check_state(atoms, tol=tol)
        if self.atoms is None:
            return changed
        # ASE compares no info, and charges depend on it
        asks_charge = self._heads is not None or self._field is not None
        of_heads = asks_charge and net_charge(atoms) != net_charge(self.atoms)
        stated = atoms.info.get("charge")
        has_charges = self._physics is not None or self._loaded.config.charges
        of_physics = has_charges and stated != self.atoms.info.get("charge")
        if of_heads or of_physics:
            changed.append("initial_charges")
        return changed

    def export_properties(self) -> Properties:
        """The results that ASE has a name for; it stops at any other."""
        known = {name: value for name, value in self.results.items() if name in all_outputs}
        return Properties(known)

    @own_modes()
    def get_features(self, atoms: Atoms | None = None) -> np.ndarray:
        """The features that the energy of every head is linear in, (N, readout_size).

        They are those of `atoms`, or of the structure that was calculated last.
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
        """What the heads say of the structure that is calculated."""
        assert self.atoms is not None
        return heads.results(BatchFeatures(self.potential, batch), self.atoms)

    def _uncertainty_of(self, level: str) -> LevelUncertainty | None:
        """The uncertainty of a level; None where none is asked for."""
        if self._uncertainties is None:
            return None
        # members of an ensemble share the training structures of their head, and not its weights
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

        In dynamics the same atoms come again and again, so only what moves is replaced.
        """
        if self._batch is None or not np.array_equal(atoms.numbers, self._numbers):
            # checked here and not at every step: the elements are the same
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
    """A probability; EngineError for anything else."""
    # `not` refuses NaN too
    if not 0 < coverage < 1:
        raise EngineError(f"coverage={coverage}", remedy="give a number between 0 and 1")
    return coverage


def _checked_field(field: Sequence[float] | None, heads: FieldHeads | None) -> np.ndarray | None:
    """A field (3,) in V/A, or None for none; EngineError and HeadError for what cannot be."""
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
    # ASE works in float64, whatever the precision of the model
    return tensor.detach().cpu().double().numpy()


# --- shared with the other engines


def refuse_physics(potential: Potential, where: str) -> None:
    """Raise EngineError for a model with physics, which `where` would leave out."""
    physics = potential.config.physics
    if physics is not None:
        raise EngineError(
            f"the model adds {physics.described} to its network, which {where} cannot do",
            remedy="use the calculator of ASE",
        )


def refuse_charges(potential: Potential, where: str) -> None:
    """Raise EngineError for a model with learned charges, whose energy `where` cannot add."""
    if potential.config.charges:
        raise EngineError(
            f"the model has charges whose interaction has no cutoff, which {where} cannot compute",
            remedy="use the calculator of ASE, torch-sim or i-PI",
        )


def refuse_results(batch: Batch) -> NoReturn:
    """Raise EngineError that says why results are not finite: the two atoms that are closest."""
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


# Tensors made in a caller's inference mode could not be differentiated, which forces need.
@own_modes()
def moved(potential: Potential, device: str | torch.device, dtype: str | None) -> Potential:
    """The potential on a device and in a dtype; itself when it is there already, else a copy.

    A copy, so that one model can drive engines of both dtypes. Raises EngineError for a device that
    this machine lacks, and for any dtype except float32, float64 and None, which keeps the present
    one.
    """
    parameter = next(potential.parameters())
    wanted = parameter.dtype if dtype is None else checked_dtype(dtype)
    place = checked_device(device)
    if place == parameter.device and wanted == parameter.dtype:
        return potential.eval()
    return copy.deepcopy(potential).to(device=place, dtype=wanted).eval()


def checked_device(name: str | torch.device) -> torch.device:
    """A device of this machine by name, such as cpu, cuda or cuda:1; EngineError for any other."""
    try:
        device = torch.device(name)
        # whether it exists shows only when it is used
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        known = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise EngineError(
            f"device={str(name)!r}: not on this machine", remedy=f"it has {known}"
        ) from None
    return device


def checked_dtype(name: str) -> torch.dtype:
    """float32 or float64 by name; EngineError for any other."""
    if name not in DTYPES:
        raise EngineError(f"dtype={name!r}", remedy="choose float32 or float64")
    return DTYPES[name]


def trained_elements(record: ModelRecord, level_of_theory: str) -> set[int]:
    """Atomic numbers of the elements that a level of theory saw in training."""
    symbols = record.trained_symbols(level_of_theory)
    return {chemical_symbols.index(symbol) for symbol in symbols}


def check_elements(numbers: np.ndarray, known: set[int], level_of_theory: str) -> None:
    """Raise UnseenElementError when atomic numbers are not among those that are known."""
    unseen = sorted(set(numbers.tolist()) - known)
    if unseen:
        names = ", ".join(chemical_symbols[number] for number in unseen)
        raise UnseenElementError(
            f"{names}: not among the {len(known)} elements that the model was trained on "
            f"at {level_of_theory}",
            remedy=f"fine-tune it on structures with {names} first",
        )
