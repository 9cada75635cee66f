"""What a fine-tuning made a model forget: errors on a probe set, before and after.

The probe set contains structures that the pretrained model itself labels: pairs of atoms of every
element, from close to far, and stretched crystals. Where the pretraining data are given, it also
contains samples of them with their own labels. It is stored next to the model as probe.extxyz.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, chemical_symbols, covalent_radii, reference_states

from ...core.labels import LABELS
from ...data_pipelines.physics.residual import as_learned
from ...data_pipelines.sources.xyz_frames import frames_of_text
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.evaluation.summary import mean_absolute
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.levels import default_level
from ...model_zoo.potential.potential import Potential
from ..gradient.replay import draw_probe, labelled_by
from .step0 import GUARDED


PROBE_FILE = "probe.extxyz"
REPORT_FILE = "forgetting.json"

PAIRS = "pairs"
CRYSTALS = "stretched crystals"
SAMPLES = "pretraining samples"

# Distances of a pair over the sum of covalent radii.
PAIR_DISTANCES = (0.7, 0.85, 1.0, 1.3)
# Lattice constants of a crystal over the one that ASE knows.
STRETCHES = (0.92, 1.0, 1.08)
LATTICES = ("fcc", "bcc", "hcp", "diamond")
# A, standard deviation of the displacements of the atoms of a crystal.
RATTLE = 0.05


@dataclass(frozen=True)
class ProbeRow:
    """Mean absolute errors on one kind of probe; 0 before, if the labels are the model's own."""

    kind: str
    num_structures: int
    before: Mapping[str, float]
    """By label: eV/atom and eV/A."""
    after: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: one entry of forgetting.json."""
        errors = {}
        for name in self.before:
            title = LABELS[name].title
            errors[f"{title}_before"] = self.before[name]
            errors[f"{title}_after"] = self.after[name]
        return {"kind": self.kind, "num_structures": self.num_structures, **errors}


@dataclass(frozen=True)
class Forgetting:
    """The probe set, and what became of its errors."""

    probe: list[Structure]
    rows: list[ProbeRow]

    def to_files(self) -> dict[str, bytes]:
        """Content of probe.extxyz and forgetting.json, by name."""
        report = json.dumps([row.to_dict() for row in self.rows], indent=1)
        return {PROBE_FILE: probe_file(self.probe), REPORT_FILE: report.encode()}


def probe_file(probe: Sequence[Structure]) -> bytes:
    """The content of probe.extxyz."""
    text = io.StringIO()
    ase.io.write(text, [_atoms_with_kind(structure) for structure in probe], format="extxyz")
    return text.getvalue().encode()


def forgetting_report(before: Potential, after: Potential, probe: list[Structure]) -> Forgetting:
    """Errors of two states of one model on the probe set, kind by kind."""
    kinds = dict.fromkeys(structure.group for structure in probe)
    rows = []
    for kind in kinds:
        chosen = [structure for structure in probe if structure.group == kind]
        rows.append(ProbeRow(kind, len(chosen), _errors(before, chosen), _errors(after, chosen)))
    return Forgetting(list(probe), rows)


def chosen_probe(model: LoadedModel, data: Path | str | None = None) -> list[Structure]:
    """The probe set of a fine-tuning.

    It is made from `data` if they are given. Else it is the one that the model has, and for a model
    without one, a new one without samples.
    """
    if data is not None:
        return probe_of(model, data)
    return stored_probe(model) or probe_of(model)


def stored_probe(model: LoadedModel) -> list[Structure]:
    """The probe set that is part of the model; empty without one.

    A file that only lies next to the model is not part of it, and is not read.
    """
    content = model.attachments.get(PROBE_FILE)
    if content is None:
        return []
    return [_structure_with_kind(atoms) for atoms in frames_of_text(content)]


def probe_of(model: LoadedModel, data: Path | str | None = None) -> list[Structure]:
    """A new probe set for a model, with samples of the pretraining `data` if they are given."""
    levels = model.potential.config.levels_of_theory
    level = default_level(model.record, levels) or levels[0]
    elements = [atomic_numbers[symbol] for symbol in model.record.trained_symbols(level)]
    unlabelled = []
    for kind, build in ((PAIRS, _pairs), (CRYSTALS, _crystals)):
        for z in elements:
            unlabelled += [Structure.from_atoms(atoms, level, kind, kind) for atoms in build(z)]

    samples = []
    if data is not None:
        known = [
            one
            for one in draw_probe(data)
            if one.level_of_theory in levels and not unlearned(one, model)
        ]
        learned = as_learned(known, data, model.potential.config.physics)
        samples = [_sample(structure) for structure in learned]
    return samples + labelled_by(model.potential, unlabelled)


def unlearned(structure: Structure, model: LoadedModel) -> list[str]:
    """Symbols of its elements that the model has not learned at the structure's level of theory.

    The model must have that level.
    """
    learned = model.record.trained_symbols(structure.level_of_theory)
    symbols = [chemical_symbols[number] for number in structure.elements]
    return [symbol for symbol in symbols if symbol not in learned]


def _errors(potential: Potential, structures: Sequence[Structure]) -> dict[str, float]:
    comparable = predict(potential, structures).comparable
    errors = {}
    for name in GUARDED:
        if name in comparable:
            # None, if no structure of the probe has this label
            errors[name] = mean_absolute(comparable[name]) or 0.0
    return errors


def _pairs(z: int) -> list[Atoms]:
    contact = 2 * covalent_radii[z]
    pairs = []
    for reach in PAIR_DISTANCES:
        positions = [[0, 0, 0], [0, 0, contact * reach]]
        pairs.append(Atoms([z, z], positions))
    return pairs


def _crystals(z: int) -> list[Atoms]:
    state = reference_states[z]
    if not state or state.get("symmetry") not in LATTICES or "a" not in state:
        return []
    if state.get("basis", ()) is None:
        # selenium and tellurium: ASE knows the lattice, but not the atoms in it
        return []

    crystals = []
    for stretch in STRETCHES:
        atoms = bulk(chemical_symbols[z])
        atoms.set_cell(stretch * atoms.cell.array, scale_atoms=True)
        atoms.rattle(RATTLE, seed=0)
        crystals.append(atoms)
    return crystals


def _sample(structure: Structure) -> Structure:
    """A pretraining structure as a part of the probe."""
    # copies: the arrays are views into a block that would otherwise stay in memory
    return replace(
        structure,
        positions=np.array(structure.positions),
        cell=np.array(structure.cell),
        pbc=np.array(structure.pbc),
        group=SAMPLES,
        split=None,
    )


def _atoms_with_kind(structure: Structure) -> Atoms:
    atoms = structure.to_atoms()
    atoms.info["kind"] = structure.group
    return atoms


def _structure_with_kind(atoms: Atoms) -> Structure:
    """Inverse of `_atoms_with_kind`. A sample has the labels of its training data."""
    results = atoms.calc.results
    labels = {name: results[name] for name in GUARDED if name in results}
    return Structure.from_atoms(
        atoms,
        level_of_theory=str(atoms.info["level_of_theory"]),
        structure_id=str(atoms.info["structure_id"]),
        group=str(atoms.info["kind"]),
        **labels,
    )
