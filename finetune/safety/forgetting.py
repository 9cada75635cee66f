"""What a fine-tuning made a model forget: a probe set, predicted before and after.

The probe holds pretraining structures with their labels where they are given, pairs of every element from close to
far, and stretched crystals, both labelled by the model as it was. It is stored beside the model as probe.extxyz.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states

from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.evaluation.summary import mean_absolute
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.potential.potential import Potential
from ..gradient.replay import draw_probe, labelled_by


PROBE_FILE, REPORT_FILE = "probe.extxyz", "forgetting.json"
PAIR_DISTANCES = (0.7, 0.85, 1.0, 1.3)  # of the sum of covalent radii
STRETCHES = (0.92, 1.0, 1.08)  # of the lattice constant
LATTICES = ("fcc", "bcc", "hcp", "diamond")


@dataclass(frozen=True)
class ProbeRow:
    """Mean errors against the labels of a kind of probe; eV/atom and eV/A. A model's own labels have none before."""

    kind: str
    num_structures: int
    energy_before: float
    energy_after: float
    force_before: float
    force_after: float


@dataclass(frozen=True)
class Forgetting:
    """The probe set and what became of its errors."""

    probe: list[Structure]
    rows: list[ProbeRow]

    def to_files(self) -> dict[str, bytes]:
        """probe.extxyz and forgetting.json, to stand beside the model."""
        report = json.dumps([asdict(row) for row in self.rows], indent=1)
        return {PROBE_FILE: probe_file(self.probe), REPORT_FILE: report.encode()}


def probe_file(probe: Sequence[Structure]) -> bytes:
    """The content of probe.extxyz."""
    text = io.StringIO()
    ase.io.write(text, [_with_kind(s) for s in probe], format="extxyz")
    return text.getvalue().encode()


def forgetting_report(before: Potential, after: Potential, probe: list[Structure]) -> Forgetting:
    """Errors on the probe of two states of one model, kind by kind."""
    kinds = dict.fromkeys(s.group for s in probe)
    rows = []
    for kind in kinds:
        chosen = [s for s in probe if s.group == kind]
        errors = [_errors(potential, chosen) for potential in (before, after)]
        (e_before, f_before), (e_after, f_after) = errors
        rows.append(ProbeRow(kind, len(chosen), e_before, e_after, f_before, f_after))
    return Forgetting(list(probe), rows)


def probe_of(
    model: LoadedModel, data: Path | str | None = None, folder: Path | None = None
) -> list[Structure]:
    """The probe stored in the model's `folder`, or a new one with samples of the pretraining `data` where given."""
    if folder is not None and (folder / PROBE_FILE).is_file():
        return [_without_kind(atoms) for atoms in ase.io.read(folder / PROBE_FILE, ":")]
    level = model.potential.config.levels_of_theory[0]
    elements = [atomic_numbers[symbol] for symbol in model.record.elements.get(level, [])]
    own = [_structure(atoms, "pairs", level) for z in elements for atoms in _pairs(z)]
    own += [
        _structure(atoms, "stretched crystals", level) for z in elements for atoms in _crystals(z)
    ]
    levels = model.potential.config.levels_of_theory
    samples = [s for s in draw_probe(data) if s.level_of_theory in levels] if data else []
    return [_of_kind(s, "pretraining samples") for s in samples] + labelled_by(model.potential, own)


def _errors(potential: Potential, structures: Sequence[Structure]) -> tuple[float, float]:
    p = predict(potential, structures)
    return mean_absolute(p.energy / p.num_atoms[:, None]) or 0.0, mean_absolute(p.forces) or 0.0


def _pairs(z: int) -> list[Atoms]:
    return [
        Atoms([z, z], [[0, 0, 0], [0, 0, 2 * covalent_radii[z] * reach]])
        for reach in PAIR_DISTANCES
    ]


def _crystals(z: int) -> list[Atoms]:
    state = reference_states[z]
    if not state or state.get("symmetry") not in LATTICES or "a" not in state:
        return []
    if (
        state.get("basis", ()) is None
    ):  # selenium, tellurium: ASE knows the lattice but not the atoms in it
        return []
    crystals = []
    for stretch in STRETCHES:
        atoms = bulk(int_symbol(z))
        atoms.set_cell(stretch * atoms.cell.array, scale_atoms=True)
        atoms.rattle(0.05, seed=0)
        crystals.append(atoms)
    return crystals


def int_symbol(z: int) -> str:
    """Symbol of an atomic number."""
    return Atoms([z]).get_chemical_formula()


def _structure(atoms: Atoms, kind: str, level: str) -> Structure:
    return Structure.from_atoms(atoms, level, kind, kind)


def _of_kind(structure: Structure, kind: str) -> Structure:
    # copies: the arrays are views into a block that would otherwise stay in memory
    return replace(
        structure,
        positions=np.array(structure.positions),
        cell=np.array(structure.cell),
        pbc=np.array(structure.pbc),
        group=kind,
        split=None,
    )


def _with_kind(s: Structure) -> Atoms:
    atoms = s.to_atoms()
    atoms.info["kind"] = s.group
    return atoms


def _without_kind(atoms: Atoms) -> Structure:
    results, info = atoms.calc.results, atoms.info
    level, name, kind = (str(info[key]) for key in ("level_of_theory", "structure_id", "kind"))
    return Structure.from_atoms(
        atoms, level, name, kind, energy=results["energy"], forces=results["forces"]
    )
