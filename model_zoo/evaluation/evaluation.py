"""Errors of a potential on labelled structures: overall, per level of theory and per element."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from rich.progress import track

from ...data_pipelines.batch import Batch
from ...data_pipelines.stream.packing import pack
from ...data_pipelines.structure import Structure
from ..potential.potential import Potential


@dataclass(frozen=True)
class Predictions:
    """Reference and predicted labels of S structures with N atoms; NaN where there is no label."""

    atomic_numbers: np.ndarray  # (N,)
    structure_index: np.ndarray  # (N,)
    level_index: np.ndarray  # (S,)
    level_names: list[str]
    num_atoms: np.ndarray  # (S,)
    energy: np.ndarray  # (S, 2): reference, predicted; eV, minus the model's E0
    forces: np.ndarray  # (N, 3, 2): eV/A
    stress: np.ndarray  # (S, 3, 3, 2): eV/A^3

    def save(self, path: Path) -> None:
        """predictions.npz for parity plots; energies per atom, after subtraction of E0."""
        per_atom = self.energy / self.num_atoms[:, None]
        np.savez_compressed(
            path,
            reference_energy_per_atom=per_atom[:, 0],
            predicted_energy_per_atom=per_atom[:, 1],
            reference_forces=self.forces[..., 0].astype(np.float32),
            predicted_forces=self.forces[..., 1].astype(np.float32),
            level_index=self.level_index,
            level_names=np.array(self.level_names),
        )


def predict(
    potential: Potential,
    structures: Iterable[Structure],
    *,
    edge_budget: int = 20_000,
    progress: bool = False,
) -> Predictions:
    """Predict all structures in batches of at most `edge_budget` edges."""
    was_training = potential.training
    potential.eval()
    parameter = next(potential.parameters())
    levels = potential.config.levels_of_theory
    graphs = (
        Batch.from_structure(s, potential.config.cutoff, levels, parameter.dtype)
        for s in structures
    )
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("z", "head", "n", "e", "f", "s")}
    for graph_list in track(
        pack(graphs, edge_budget, 4096, 1), "evaluating", disable=not progress, transient=True
    ):
        batch = Batch.join(graph_list).to(parameter.device)
        with torch.no_grad():
            out = potential(batch)
        e0 = potential.e0[batch.head[batch.structure_index], batch.atomic_numbers]
        e0 = batch.sum_over_atoms(e0)
        results = {
            "z": batch.atomic_numbers,
            "head": batch.head,
            "n": batch.atoms_per_structure,
            "e": torch.stack([batch.labels["energy"] - e0, out.energy - e0], -1),
            "f": torch.stack([batch.labels["forces"], out.forces], -1),
            "s": torch.stack([batch.labels["stress"], out.stress], -1),
        }
        for name, value in results.items():
            rows[name].append(value.detach().cpu().double().numpy())
    potential.train(was_training)
    if not rows["z"]:
        raise ValueError("there are no structures to evaluate")
    z, head, sizes, energy, forces, stress = (np.concatenate(values) for values in rows.values())
    return Predictions(
        atomic_numbers=z.astype(int),
        structure_index=np.repeat(np.arange(len(sizes)), sizes.astype(int)),
        level_index=head.astype(int),
        level_names=list(levels),
        num_atoms=sizes.astype(int),
        energy=energy,
        forces=forces,
        stress=stress,
    )


def mean_absolute(pairs: np.ndarray) -> float | None:
    """Mean |predicted - reference| over (..., 2) where there is a label; None where there is none.

    NaN when a prediction is: a broken model must not look good on the rest.
    """
    pairs = pairs[np.isfinite(pairs[..., 0])]
    return float(np.abs(pairs[..., 1] - pairs[..., 0]).mean()) if len(pairs) else None


def root_mean_square(values: np.ndarray) -> float | None:
    """RMS over finite entries, or None."""
    values = values[np.isfinite(values)]
    return float(np.sqrt((values**2).mean())) if values.size else None


def summarise(
    p: Predictions, split: str, train_counts: dict[str, int] | None = None
) -> dict[str, Any]:
    """The content of evaluation.json.

    Force errors are per component (eV/A), energies per atom (eV).  Worst decile: the mean force MAE of the
    tenth of elements (at least one) with the largest, the figure that importance weights are meant to lower.
    """
    per_atom_energy = p.energy / p.num_atoms[:, None]
    per_element = _per_element(p, per_atom_energy, train_counts or {})
    errors = sorted(
        (
            (row["force_mae"], symbol)
            for symbol, row in per_element.items()
            if row["force_mae"] is not None
        ),
        reverse=True,
    )
    decile = [mae for mae, _ in errors[: max(1, round(len(errors) / 10))]]
    levels = {}
    for index, level in enumerate(p.level_names):
        chosen = p.level_index == index
        if chosen.any():
            atoms = chosen[p.structure_index]
            levels[level] = {
                "num_structures": int(chosen.sum()),
                "energy_mae_per_atom": mean_absolute(per_atom_energy[chosen]),
                "force_mae": mean_absolute(p.forces[atoms]),
                "force_rms": root_mean_square(p.forces[atoms][..., 0]),
                "stress_mae": mean_absolute(p.stress[chosen]),
            }
    return {
        "split": split,
        "num_structures": len(p.num_atoms),
        "num_atoms": len(p.atomic_numbers),
        "energy_mae_per_atom": mean_absolute(per_atom_energy),
        "force_mae": mean_absolute(p.forces),
        "force_rms": root_mean_square(p.forces[..., 0]),
        "stress_mae": mean_absolute(p.stress),
        "mean_over_elements_force_mae": float(np.mean([mae for mae, _ in errors]))
        if errors
        else None,
        "worst_element": errors[0][1] if errors else None,
        "worst_element_force_mae": errors[0][0] if errors else None,
        "worst_decile_force_mae": float(np.mean(decile)) if decile else None,
        "levels": levels,
        "per_element": per_element,
    }


def _per_element(
    p: Predictions, energy: np.ndarray, train_counts: dict[str, int]
) -> dict[str, Any]:
    table = {}
    for z in np.unique(p.atomic_numbers):
        atoms = p.atomic_numbers == z
        structures = np.unique(p.structure_index[atoms])
        table[chemical_symbols[z]] = {
            "num_structures": len(structures),
            "num_train_structures": train_counts.get(chemical_symbols[z], 0),
            "num_atoms": int(atoms.sum()),
            "force_mae": mean_absolute(p.forces[atoms]),
            "force_rms": root_mean_square(p.forces[atoms][..., 0]),
            "energy_mae_per_atom": mean_absolute(energy[structures]),
        }
    return table


def with_a_head(potential: Potential, structures: Iterable[Structure]) -> Iterator[Structure]:
    """Those that the potential can be asked about: a rare level of theory may have no training structure at all."""
    return (s for s in structures if s.level_of_theory in potential.config.levels_of_theory)


def evaluate(
    potential: Potential, structures: Iterable[Structure], split: str, limit: int | None = None
) -> dict:
    """`predict` and `summarise` in one, over at most `limit` structures."""
    return summarise(predict(potential, islice(structures, limit)), split)
