"""Step 0: errors on the new data before learning, and a stop when the set-up raised them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.errors import EvenfieldError
from ...core.labels import LABELS, unit_factor
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.evaluation.predictions import Predictions
from ...model_zoo.evaluation.summary import ErrorSummary, summarise
from ...model_zoo.potential.potential import Potential
from ..target import Target


# Labels whose errors must not rise. The stress is not one of them: it is another derivative of the
# energy, which energies and forces guard already.
GUARDED = tuple(name for name in LABELS if name != "stress")
# Errors are equal up to this relative difference.
ROUNDING = 1e-6

# If labels and predictions correlate by more than this, their ratio tells something about the unit.
CORRELATION = 0.8
# Ratios of labels to predictions between these are no sign of another unit: models may be too soft
# or too stiff.
RATIOS = (0.2, 5.0)
# Predictions cannot tell units apart whose factors differ by less than this factor.
CLOSE = 1.25
# Labels without which a correlation means nothing.
FEWEST_VALUES = 6
# Forces (eV/A) and stresses (eV/A^3) below this are zero by symmetry, up to rounding.
VANISHING = 1e-6
# A unit explains a ratio if the ratio in that unit is within this factor of one.
EXPLAINED = 2.5
# Fewer structures with a stress may all be compressed where the model expands: lattice constants
# of two functionals differ.
FEWEST_STRESSES = 4
# Force MAE of a model over the RMS of the forces that it was evaluated on. Above this, a ratio says
# something about the model and not about the unit. A model that has learned nothing has 0.6 to 0.8.
# Bases of 2 to 60 steps with 0.44 to 0.68 predict forces and stresses that are 6 to 70 times too
# small, and refused right labels in 1 to 5 of 40 draws of 4 structures.
LARGEST_RELATIVE_ERROR = 0.4
# Units that data come in, by the names that `evenfield data convert` knows. A leading minus is the
# opposite sign: a gradient instead of a force, a pressure instead of a stress.
UNITS = {
    "forces": (
        "Hartree/Bohr",
        "Hartree/A",
        "Ry/Bohr",
        "kcal/mol/A",
        "kJ/mol/A",
        "-eV/A",
        "-Hartree/Bohr",
    ),
    "stress": ("GPa", "kbar", "Hartree/Bohr^3", "-eV/A^3", "-GPa", "-kbar"),
    "energy": ("Hartree", "Ry", "kcal/mol", "kJ/mol"),
}
# Labels that may come with the opposite sign.
SIGNED = ("forces", "stress")


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


@dataclass(frozen=True)
class WrongUnit:
    """Labels that follow the predictions of the model with a factor that a unit explains."""

    label: str
    ratio: float
    """Labels over predictions; negative for the other sign."""
    likely: list[str]
    """Units that would explain the ratio, the best first; empty if none does."""


def can_judge_units(evaluation: ErrorSummary | None, level: str) -> bool:
    """Whether the errors of a model at a level of theory are small enough to judge units by it.

    evaluation: of the model. A model without errors of forces is trusted.
    """
    if evaluation is None:
        return True
    error = evaluation.relative_force_mae
    if level in evaluation.levels:
        error_of_level = evaluation.levels[level].relative_force_mae
        error = error if error_of_level is None else error_of_level
    # written so that NaN counts as large
    return error is None or error < LARGEST_RELATIVE_ERROR


def refuse_wrong_units(potential: Potential, target: Target) -> None:
    """Raise WrongUnitError when labels follow the model's predictions in another unit or sign.

    A model whose predictions do not correlate with the labels refuses nothing. `can_judge_units`
    says whether a model knows enough to be asked at all.

    All labels are checked before the error is raised, because their units belong together: energies
    in Hartree come with forces in Hartree/Bohr. A user who corrects one of them alone would be
    refused again.
    """
    predictions = predict(potential, target.train)
    comparable = {
        "forces": _labelled_components(predictions),
        "stress": _stress_without_mean(predictions),
        "energy": _energies_without_composition(predictions),
    }
    wrong = []
    for name, pairs in comparable.items():
        found = _wrong_unit(name, pairs)
        if found is not None:
            wrong.append(found)
    if not wrong:
        return

    texts = []
    settings = []
    for found in _with_one_energy_unit(wrong):
        likely = " or ".join(found.likely) or "no unit that is known here"
        texts.append(
            f"{found.label}: the labels are {found.ratio:.3g} times what the model predicts, and "
            f"follow it; they look like {likely}, not {LABELS[found.label].unit}"
        )
        # without a unit that explains the factor, the column may hold something else
        unit = found.likely[0] if found.likely else "..."
        settings.append(target.setting_of_unit(found.label, unit))
    raise WrongUnitError(
        f"{target.train[0].structure_id} and others: {'; '.join(texts)}",
        remedy=f"{target.how_to_read_again} {' '.join(settings)}; or, if the labels are right, set "
        "trust_units=true",
    )


def _with_one_energy_unit(wrong: list[WrongUnit]) -> list[WrongUnit]:
    """The same, but units that contain the likely unit of the energies come first."""
    of_energy = [unit for found in wrong if found.label == "energy" for unit in found.likely[:1]]
    if not of_energy:
        return wrong
    sorted_units = []
    for found in wrong:
        likely = sorted(found.likely, key=lambda unit: not unit.startswith(f"{of_energy[0]}/"))
        sorted_units.append(replace(found, likely=likely))
    return sorted_units


def _wrong_unit(name: str, pairs: np.ndarray) -> WrongUnit | None:
    """What is wrong with labels and predictions (R, 2) of one label."""
    # constant labels or predictions have no correlation
    if len(pairs) < FEWEST_VALUES or not np.ptp(pairs, axis=0).all():
        return None
    labels, predicted = pairs.T
    correlation = np.corrcoef(labels, predicted)[0, 1]
    # energies cannot have the opposite sign: a negative correlation means a poor model
    strength = abs(correlation) if name in SIGNED else correlation
    # written so that NaN counts as no correlation
    if not strength > CORRELATION:
        return None

    # least squares for labels = ratio * predictions
    ratio = float(labels @ predicted / (predicted @ predicted))
    if RATIOS[0] < ratio < RATIOS[1]:
        return None
    return WrongUnit(name, ratio, _explaining(name, ratio))


def _explaining(name: str, ratio: float) -> list[str]:
    """Units that explain labels of `ratio` times the predictions: the best and those near it."""
    distances = {}
    for unit in UNITS[name]:
        # In the right unit the ratio is one, and its logarithm zero.
        ratio_in_unit = ratio * unit_factor(name, unit)
        if ratio_in_unit > 0:
            distances[unit] = abs(np.log(ratio_in_unit))
    if not distances or min(distances.values()) > np.log(EXPLAINED):
        return []
    limit = min(distances.values()) + np.log(CLOSE)
    near = [unit for unit in distances if distances[unit] < limit]
    return sorted(near, key=lambda unit: distances[unit])


def misfit(predictions: Predictions) -> float:
    """How far labels and predictions are apart, from 0 to 1; infinite without a label.

    For each label it is the mean absolute error, over the sum of the mean absolute values of labels
    and predictions. Forces and stress are averaged; without either, the energies count. A model
    that predicts next to nothing gets 1, even if most labels vanish by symmetry. The zero of energy
    does not matter: energies are compared without the part that composition explains.
    """
    found = []
    for pairs in (_labelled_components(predictions), _stress_without_mean(predictions)):
        if len(pairs):
            found.append(_relative_error(pairs))
    energies = _energies_without_composition(predictions)
    if not found and len(energies):
        found.append(_relative_error(energies))
    return float(np.mean(found)) if found else math.inf


def _relative_error(pairs: np.ndarray) -> float:
    """How far labels and predictions (R, 2) are apart, 0 to 1; 1 if both vanish."""
    labels, predicted = pairs.T
    size = np.abs(labels).mean() + np.abs(predicted).mean()
    return float(np.abs(labels - predicted).mean() / size) if size > VANISHING else 1.0


def _labelled_components(predictions: Predictions) -> np.ndarray:
    """Label and prediction of all force components that have a label, (R, 2)."""
    pairs = predictions.forces.reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(1)]


def _stress_without_mean(predictions: Predictions) -> np.ndarray:
    """Label and prediction of the stress (R, 2), each component minus its mean over structures.

    The mean is what another lattice constant adds, and says nothing about the sign.
    """
    if "stress" not in predictions.pairs:
        return np.empty((0, 2))
    pairs = predictions.stress.reshape(len(predictions.num_atoms), 9, 2)
    labelled = pairs[np.isfinite(pairs).all((1, 2))]
    if len(labelled) < FEWEST_STRESSES:
        return np.empty((0, 2))
    about_mean = labelled - labelled.mean(0)
    return about_mean.reshape(-1, 2)


def _energies_without_composition(predictions: Predictions) -> np.ndarray:
    """Labels and predictions of energies per atom (S, 2), without the part due to composition.

    That part depends on the zero of energy, which may be another one.
    """
    labelled = np.isfinite(predictions.energy).all(1)
    elements = np.unique(predictions.atomic_numbers)
    per_atom = predictions.energy / predictions.num_atoms[:, None]
    pairs = per_atom[labelled]
    # with fewer structures, composition explains (nearly) everything
    if len(pairs) <= len(elements) + 2:
        return np.empty((0, 2))

    composition = []
    for structure in np.flatnonzero(labelled):
        atoms = predictions.atomic_numbers[predictions.structure_index == structure]
        composition.append([(atoms == z).mean() for z in elements])
    share = np.array(composition)  # (S, elements)
    energy_of_elements = np.linalg.lstsq(share, pairs, rcond=None)[0]
    return pairs - share @ energy_of_elements
