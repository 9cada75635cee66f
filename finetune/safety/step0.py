"""Step 0: errors on the new data before learning, and a stop when the set-up raised them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import EvenfieldError
from ...core.labels import LABELS, unit_factor
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.evaluation.predictions import Predictions
from ...model_zoo.evaluation.summary import summarise
from ...model_zoo.potential.potential import Potential


# Labels whose errors must not rise. Not the stress: it is another derivative of the same energy,
# and the energy and the forces already guard that.
GUARDED = tuple(name for name in LABELS if name != "stress")
# Errors are equal up to this relative difference.
ROUNDING = 1e-6

# Between labels and predictions; above it, their ratio says something about the unit.
CORRELATION = 0.8
# Labels over predictions that are no sign of another unit: models may be too soft or too stiff.
RATIOS = (0.2, 5.0)
# Predictions of a model cannot distinguish units whose factors differ by less than this.
CLOSE = 1.25
FEWEST_VALUES = 6
# Units that data come in, by the names that `evenfield data convert` knows. Forces come first,
# because they do not depend on the zero of energy.
UNITS = {
    "forces": ("Hartree/Bohr", "Hartree/A", "Ry/Bohr", "kcal/mol/A", "kJ/mol/A"),
    "energy": ("Hartree", "Ry", "kcal/mol", "kJ/mol"),
}


class WorseError(EvenfieldError):
    """The set-up made the model worse on the new data than it was."""


class WrongUnitError(EvenfieldError):
    """Labels follow the predictions of the model, but in another unit."""


@dataclass(frozen=True)
class Step:
    """Errors of the guarded labels after one step of the set-up."""

    name: str
    mae: Mapping[str, float | None]
    """Mean absolute error by label, in eV/atom and eV/A; None without such labels."""

    @property
    def energy_mae_per_atom(self) -> float | None:
        """eV/atom"""
        return self.mae["energy"]

    @property
    def force_mae(self) -> float | None:
        """eV/A, per component"""
        return self.mae["forces"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the record of the model."""
        errors = {LABELS[name].error_key: value for name, value in self.mae.items()}
        return {"name": self.name, **errors}


def step(name: str, potential: Potential, structures: list[Structure]) -> Step:
    """The errors of the potential as it is now."""
    mae = summarise(predict(potential, structures), "train").mae
    return Step(name, {label: mae[label] for label in GUARDED if label in mae})


def worse_labels(after: Step, before: Step) -> list[str]:
    """Which errors of `after` are above those of `before`, or are not numbers; as text."""
    worse = []
    for name, old in before.mae.items():
        new = after.mae[name]
        if old is None or new is None:
            continue
        # written so that NaN counts as worse
        if not new <= old * (1 + ROUNDING) + 1e-12:
            worse.append(f"{LABELS[name].title} MAE {old:.4g} to {new:.4g}")
    return worse


def refuse_if_worse(table: list[Step]) -> None:
    """Raise WorseError when the errors of the last step are above those of the first."""
    worse = worse_labels(table[-1], table[0])
    if worse:
        raise WorseError(
            f"set-up made the model worse on the new data ({'; '.join(worse)}), so that nothing "
            "was fine-tuned",
            remedy="check the labels and their level of theory, or give the data a level of theory "
            "of their own",
        )


def refuse_wrong_units(potential: Potential, structures: list[Structure]) -> None:
    """Raise WrongUnitError when labels follow the model's predictions, but in another unit.

    A model that knows too little about the data to correlate with them says nothing.
    """
    predictions = predict(potential, structures)
    comparable = {
        "forces": _labelled_components(predictions),
        "energy": _energies_without_composition(predictions),
    }
    for name, likely_units in UNITS.items():
        pairs = comparable[name]
        # constant labels or predictions have no correlation
        if len(pairs) < FEWEST_VALUES or not np.ptp(pairs, axis=0).all():
            continue
        labels, predicted = pairs.T
        # written so that NaN counts as no correlation
        if not np.corrcoef(labels, predicted)[0, 1] > CORRELATION:
            continue
        # least squares for labels = ratio * predictions
        ratio = float(labels @ predicted / (predicted @ predicted))
        if RATIOS[0] < ratio < RATIOS[1]:
            continue
        likely = _explaining(name, likely_units, ratio)
        keys = " or ".join(f"units.{name}={unit}" for unit in likely)
        raise WrongUnitError(
            f"{structures[0].structure_id} and others: {name} are {ratio:.3g} times what the "
            f"model predicts, and follow it: they look like {' or '.join(likely)}, "
            f"not {LABELS[name].unit}",
            remedy=f"convert the data with {keys}; or, if they are right, set trust_units=true",
        )


def _explaining(name: str, units: tuple[str, ...], ratio: float) -> list[str]:
    """Units that explain labels of `ratio` times the predictions: the best and those near it."""
    # In the right unit the ratio is one, and its logarithm zero.
    off = {unit: abs(np.log(ratio * unit_factor(name, unit))) for unit in units}
    limit = min(off.values()) + np.log(CLOSE)
    return [unit for unit in units if off[unit] < limit]


def _labelled_components(predictions: Predictions) -> np.ndarray:
    """Label and prediction of all force components that have a label, (R, 2)."""
    pairs = predictions.forces.reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(1)]


def _energies_without_composition(predictions: Predictions) -> np.ndarray:
    """Labelled energies per atom (S, 2), without the part that composition explains.

    That part depends on the zero of energy, which may be another one.
    """
    labelled = np.isfinite(predictions.energy).all(1)
    elements = np.unique(predictions.atomic_numbers)
    per_atom = predictions.energy / predictions.num_atoms[:, None]
    pairs = per_atom[labelled]
    # fewer structures are fitted exactly by composition, and nothing is left of them
    if len(pairs) <= len(elements) + 2:
        return np.empty((0, 2))

    composition = []
    for structure in np.flatnonzero(labelled):
        atoms = predictions.atomic_numbers[predictions.structure_index == structure]
        composition.append([(atoms == z).mean() for z in elements])
    share = np.array(composition)  # (S, elements)
    energy_of_elements = np.linalg.lstsq(share, pairs, rcond=None)[0]
    return pairs - share @ energy_of_elements
