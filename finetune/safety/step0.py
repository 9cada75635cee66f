"""The step-0 guarantee: errors on the new data before anything is learned, and a stop when set-up made them worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import EvenfieldError
from ...core.labels import unit_factor
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.evaluation.predictions import Predictions
from ...model_zoo.evaluation.summary import summarise
from ...model_zoo.potential.potential import Potential


LABELS = {"energy_mae_per_atom": "energy MAE", "force_mae": "force MAE"}
ROUNDING = 1e-6  # relative
CORRELATION = (
    0.8  # between labels and predictions, above which their ratio says something of the unit
)
RATIOS = (0.2, 5.0)  # of labels to predictions; soft and stiff models lie well inside
CLOSE = 1.25  # units whose factors differ by less can't be told apart by a model's predictions
UNITS = {  # that sources come in; names of `data convert`
    "forces": ("Hartree/Bohr", "Hartree/A", "Ry/Bohr", "kcal/mol/A", "kJ/mol/A"),
    "energy": ("Hartree", "Ry", "kcal/mol", "kJ/mol"),
}


class WorseError(EvenfieldError):
    """Set-up made the model worse on the new data than it was."""


class WrongUnitError(EvenfieldError):
    """Labels follow the model's predictions, but in another unit."""


@dataclass(frozen=True)
class Step:
    """Errors after one step of the set-up; eV/atom and eV/A, None without labels."""

    name: str
    energy_mae_per_atom: float | None
    force_mae: float | None


def step(name: str, potential: Potential, structures: list[Structure]) -> Step:
    """Errors of the potential as it stands."""
    summary = summarise(predict(potential, structures), "train")
    return Step(name, summary.energy_mae_per_atom, summary.force_mae)


def worse_labels(after: Any, before: Any) -> list[str]:
    """Which errors of `after` lie above those of `before`, or are not numbers."""
    names = []
    for key, name in LABELS.items():
        old, new = getattr(before, key), getattr(after, key)
        if old is not None and not new <= old * (1 + ROUNDING) + 1e-12:
            names.append(f"{name} {old:.4g} to {new:.4g}")
    return names


def refuse_if_worse(table: list[Step]) -> None:
    """Raise WorseError when the last step's errors are above the first's."""
    if names := worse_labels(table[-1], table[0]):
        raise WorseError(
            f"set-up made the model worse on the new data ({'; '.join(names)}), so that nothing "
            "was fine-tuned",
            remedy="check the labels and their level of theory, or give the data a level of theory "
            "of their own",
        )


def refuse_wrong_units(potential: Potential, structures: list[Structure]) -> None:
    """Raise WrongUnitError when the labels follow the model's own predictions, but in another unit.

    Where the model knows too little of the data to say so, nothing is said.
    """
    p = predict(potential, structures)
    pairs = {"forces": (_rows(p.forces), "eV/A"), "energy": (_energies(p), "eV")}
    for label, (rows, ours) in pairs.items():
        if len(rows) < 6 or not np.ptp(rows, axis=0).all():
            continue
        if not np.corrcoef(rows.T)[0, 1] > CORRELATION:
            continue
        ratio = float(rows[:, 0] @ rows[:, 1] / (rows[:, 1] @ rows[:, 1]))
        if not RATIOS[0] < ratio < RATIOS[1]:
            likely = _likely_units(label, ratio)
            keys = " or ".join(f"units.{label}={unit}" for unit in likely)
            raise WrongUnitError(
                f"{structures[0].structure_id} and others: {label} are {ratio:.3g} times what the "
                f"model predicts, and follow it: they look like {' or '.join(likely)}, not {ours}",
                remedy=f"convert the data with {keys}, or set trust_units=true",
            )


def _likely_units(label: str, ratio: float) -> list[str]:
    """Units that explain labels of `ratio` times the predictions: the best one, and what is too close to it to tell."""
    off = {unit: abs(np.log(ratio * unit_factor(label, unit))) for unit in UNITS[label]}
    return [unit for unit in off if off[unit] < min(off.values()) + np.log(CLOSE)]


def _rows(forces: np.ndarray) -> np.ndarray:
    """Labelled force components (R, 2)."""
    rows = forces.reshape(-1, 2)
    return rows[np.isfinite(rows).all(1)]


def _energies(p: Predictions) -> np.ndarray:
    """Labelled energies per atom (S, 2) without what composition explains, which another zero of energy changes."""
    labelled = np.isfinite(p.energy).all(1)
    elements = np.unique(p.atomic_numbers)
    share = np.array(
        [
            [(p.atomic_numbers[p.structure_index == s] == z).mean() for z in elements]
            for s in np.flatnonzero(labelled)
        ]
    )
    rows = (p.energy / p.num_atoms[:, None])[labelled]
    if len(rows) <= len(elements) + 2:
        return np.empty((0, 2))
    return rows - share @ np.linalg.lstsq(share, rows, rcond=None)[0]
