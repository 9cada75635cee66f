"""The summary of a model's errors, used by the model card, the watch page and the report.

`summarise` makes an `ErrorSummary` from predictions. `to_dict` and `from_dict` define the format of
evaluation.json and of validation lines in metrics.jsonl; no other code reads or writes these keys.
Errors are in the units of `core.labels`: eV/atom, eV/A, eV/A^3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from ase.data import chemical_symbols

from ...core.errors import EvenfieldError
from ...core.files import file_errors
from ...core.labels import LABELS, Label
from ...core.seals import sealed, unsealed
from .predictions import Predictions


# key of evaluation.json -> label
MAE_KEYS = {label.error_key: name for name, label in LABELS.items()}
# Only for per-atom labels, whose RMS gives the error a scale. The RMS of energies would depend on
# the zero of energy.
RMS_KEYS = {
    label.error_key.replace("_mae", "_rms"): name
    for name, label in LABELS.items()
    if label.per == "atom"
}

# of the bootstrap over structures
REMEDY = "write it again with `evenfield evaluate`"

FEWEST_TO_DRAW = 3
NUM_DRAWS = 400
INTERVAL = (0.05, 0.95)


class SummaryError(EvenfieldError):
    """A file does not hold a valid summary of errors."""


class InfiniteErrorsError(EvenfieldError):
    """The errors of a model are not finite, because its predictions are not."""


@dataclass(frozen=True)
class Errors:
    """Errors on a set of structures, keyed by the names of `core.labels`.

    An error is None without such labels. It is NaN if any prediction is NaN, so that a broken model
    does not look good on the rest.
    """

    num_structures: int
    mae: Mapping[str, float | None]
    """Mean absolute error, per component for forces and stress, per atom for extensive labels."""
    rms: Mapping[str, float | None]
    """Root mean square of the reference values, only for per-atom labels."""

    @property
    def energy_mae_per_atom(self) -> float | None:
        """In eV/atom."""
        return self.mae.get("energy")

    @property
    def force_mae(self) -> float | None:
        """In eV/A, per component."""
        return self.mae.get("forces")

    @property
    def force_rms(self) -> float | None:
        """RMS of the reference forces in eV/A, per component."""
        return self.rms.get("forces")

    @property
    def stress_mae(self) -> float | None:
        """In eV/A^3, per component."""
        return self.mae.get("stress")

    @property
    def relative_force_mae(self) -> float | None:
        """Force MAE divided by the RMS of the reference forces.

        For a model that has learned nothing, it is about 1.
        """
        if self.force_mae is None or not self.force_rms:
            return None
        return self.force_mae / self.force_rms

    def _to_dict(self) -> dict[str, float | None]:
        """The errors, keyed as in evaluation.json and in the order of `mae`."""
        content = {}
        for name, value in self.mae.items():
            key = LABELS[name].error_key
            content[key] = value
            if name in self.rms:
                content[key.replace("_mae", "_rms")] = self.rms[name]
        return content


@dataclass(frozen=True)
class LevelErrors(Errors):
    """Errors on the structures of one level of theory."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"num_structures": self.num_structures, **self._to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SummaryError."""
        return cls(_count(content, "num_structures"), *_errors(content))


@dataclass(frozen=True)
class ElementErrors(Errors):
    """Errors on one element: per-atom labels of its atoms, energies of structures with it."""

    num_train_structures: int
    """The number of training structures that contain the element."""
    num_atoms: int
    relative_force_interval: tuple[float, float] | None = None
    """Bootstrap interval of `relative_force_mae` over the structures with the element."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        content: dict[str, Any] = {
            "num_structures": self.num_structures,
            "num_train_structures": self.num_train_structures,
            "num_atoms": self.num_atoms,
            **self._to_dict(),
        }
        # files of earlier versions have none, and must not change when they are rewritten
        if self.relative_force_interval is not None:
            content["relative_force_interval"] = list(self.relative_force_interval)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SummaryError."""
        return cls(
            _count(content, "num_structures"),
            *_errors(content),
            num_train_structures=_count(content, "num_train_structures"),
            num_atoms=_count(content, "num_atoms"),
            relative_force_interval=_interval(content, "relative_force_interval"),
        )


@dataclass(frozen=True)
class ErrorSummary(Errors):
    """Errors of one model on one split: overall, by level of theory and by element.

    The figures over elements are those that importance weights are meant to lower: the mean over
    all elements, the worst element, and the mean over the worst tenth (at least one).
    """

    split: str
    num_atoms: int
    mean_over_elements_force_mae: float | None
    worst_element: str | None
    worst_element_force_mae: float | None
    worst_decile_force_mae: float | None
    levels: Mapping[str, LevelErrors]
    per_element: Mapping[str, ElementErrors]
    """Keyed by symbol."""

    def force_mae_of_elements(self) -> dict[str, float]:
        """Force MAE in eV/A by symbol, for elements whose atoms have force labels."""
        return {
            symbol: errors.force_mae
            for symbol, errors in self.per_element.items()
            if errors.force_mae is not None
        }

    def refuse_infinite(self) -> None:
        """Raise InfiniteErrorsError if an error is not finite, because the model is unusable."""
        broken = [
            LABELS[name].title.lower()
            for name, error in self.mae.items()
            if error is not None and not math.isfinite(error)
        ]
        if broken:
            raise InfiniteErrorsError(
                f"the model predicts no finite {' and '.join(broken)} for the structures of "
                f"{self.split}, and nothing was saved",
                remedy="train again with a lower learning rate, or look at the labels",
            )

    def figures(self) -> dict[str, float]:
        """The overall errors, keyed as in evaluation.json, without missing ones."""
        figures = self._to_dict() | {
            "worst_element_force_mae": self.worst_element_force_mae,
            "worst_decile_force_mae": self.worst_decile_force_mae,
        }
        return {key: value for key, value in figures.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The content of evaluation.json, JSON-ready."""
        return {
            "split": self.split,
            "num_structures": self.num_structures,
            "num_atoms": self.num_atoms,
            **self._to_dict(),
            "mean_over_elements_force_mae": self.mean_over_elements_force_mae,
            "worst_element": self.worst_element,
            "worst_element_force_mae": self.worst_element_force_mae,
            "worst_decile_force_mae": self.worst_decile_force_mae,
            "levels": {name: errors.to_dict() for name, errors in self.levels.items()},
            "per_element": {
                symbol: errors.to_dict() for symbol, errors in self.per_element.items()
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SummaryError if a value has the wrong type."""
        elements = {}
        for symbol, row in _table(content, "per_element").items():
            if symbol not in chemical_symbols:
                raise SummaryError(f"per_element.{symbol}: no element")
            elements[symbol] = ElementErrors.from_dict(row)
        levels = {
            name: LevelErrors.from_dict(row) for name, row in _table(content, "levels").items()
        }
        if not isinstance(content.get("split"), str):
            raise SummaryError("split: not a text")
        return cls(
            _count(content, "num_structures"),
            *_errors(content),
            split=content["split"],
            num_atoms=_count(content, "num_atoms"),
            mean_over_elements_force_mae=_number(content, "mean_over_elements_force_mae"),
            worst_element=content.get("worst_element"),
            worst_element_force_mae=_number(content, "worst_element_force_mae"),
            worst_decile_force_mae=_number(content, "worst_decile_force_mae"),
            levels=levels,
            per_element=elements,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an evaluation.json.

        Raises SummaryError if it is invalid or does not match its checksum, and FileError if there
        is no file.
        """
        with file_errors(path, remedy="`evenfield pretrain` and `evenfield evaluate` write it"):
            # read as bytes: content that is not text is reported as invalid JSON below
            text = path.read_bytes()
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SummaryError(f"not JSON ({error})", file=path) from error
        try:
            summary = cls.from_dict(content)
        except SummaryError as error:
            raise SummaryError(
                f"not a summary of errors ({error.message})", file=path, remedy=REMEDY
            ) from error
        if unsealed(text) is None:
            raise SummaryError(
                "does not match its checksum: it is damaged, or was edited",
                file=path,
                remedy=REMEDY,
            )
        return summary

    def to_json(self) -> str:
        """The text of evaluation.json, with a checksum that reveals changed digits."""
        return json.dumps(sealed(self.to_dict()), indent=1)


def summarise(
    predictions: Predictions,
    split: str,
    train_counts: Mapping[str, int] | None = None,
    level_counts: Mapping[str, Mapping[str, int]] | None = None,
) -> ErrorSummary:
    """Summarise the errors of predictions.

    train_counts: symbol -> training structures that contain the element; missing symbols count 0.
    level_counts: the same by level of theory. If all levels of the predicted structures have
        counts, an element is counted only at the levels at which it is tested. Cheap labels at
        another level then do not make it common.
    """
    per_element = _by_element(predictions, train_counts or {}, level_counts or {})
    # by forces, which belong to one element; an energy belongs to all elements of a structure
    ranked = sorted(
        (
            (errors.force_mae, symbol)
            for symbol, errors in per_element.items()
            if errors.force_mae is not None
        ),
        reverse=True,
    )
    force_errors = [mae for mae, _ in ranked]
    worst_decile = force_errors[: max(1, round(len(ranked) / 10))]

    levels = {}
    for index, level in enumerate(predictions.level_names):
        structures = predictions.level_index == index
        # a model may have heads for levels of theory without structures here
        if structures.any():
            atoms = structures[predictions.structure_index]
            mae, rms = _select(predictions, structures, atoms)
            levels[level] = LevelErrors(int(structures.sum()), mae, rms)

    everything = slice(None)
    mae, rms = _select(predictions, everything, everything)
    return ErrorSummary(
        len(predictions.num_atoms),
        mae,
        rms,
        split=split,
        num_atoms=len(predictions.atomic_numbers),
        mean_over_elements_force_mae=float(np.mean(force_errors)) if ranked else None,
        worst_element=ranked[0][1] if ranked else None,
        worst_element_force_mae=ranked[0][0] if ranked else None,
        worst_decile_force_mae=float(np.mean(worst_decile)) if ranked else None,
        levels=levels,
        per_element=per_element,
    )


def mean_absolute(pairs: np.ndarray) -> float | None:
    """Mean |predicted - reference| over pairs (..., 2) with a reference; None if there are none.

    The mean is NaN if any prediction is NaN, so that a broken model does not look good on the rest.
    """
    # selected by the reference alone, so that NaN predictions are included
    labelled = pairs[np.isfinite(pairs[..., 0])]
    if not len(labelled):
        return None
    return float(np.abs(labelled[:, 1] - labelled[:, 0]).mean())


def root_mean_square(values: np.ndarray) -> float | None:
    """RMS over the finite values; None if there are none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    return float(np.sqrt((finite**2).mean()))


def _by_element(
    predictions: Predictions,
    train_counts: Mapping[str, int],
    level_counts: Mapping[str, Mapping[str, int]],
) -> dict[str, ElementErrors]:
    # the stress of a cell says little about one of its elements; the energy per atom says more
    labels = [label for label in LABELS.values() if label.per == "atom"]
    labels += [label for label in LABELS.values() if label.extensive and label.per == "structure"]
    table = {}
    for atomic_number in np.unique(predictions.atomic_numbers):
        symbol = chemical_symbols[atomic_number]
        atoms = predictions.atomic_numbers == atomic_number
        structures = np.unique(predictions.structure_index[atoms])
        own_levels = np.unique(predictions.level_index[structures])
        levels = [predictions.level_names[index] for index in own_levels]
        mae, rms = _select(predictions, structures, atoms, labels)
        table[symbol] = ElementErrors(
            len(structures),
            mae,
            rms,
            num_train_structures=_num_train_structures(symbol, levels, train_counts, level_counts),
            num_atoms=int(atoms.sum()),
            relative_force_interval=_relative_force_interval(predictions, atoms),
        )
    return table


def _num_train_structures(
    symbol: str,
    levels: list[str],
    train_counts: Mapping[str, int],
    level_counts: Mapping[str, Mapping[str, int]],
) -> int:
    """Training structures with an element at `levels`, or at all levels without such counts."""
    if not all(level in level_counts for level in levels):
        return train_counts.get(symbol, 0)
    return sum(level_counts[level].get(symbol, 0) for level in levels)


def _relative_force_interval(
    predictions: Predictions, atoms: np.ndarray
) -> tuple[float, float] | None:
    """Percentile bootstrap (Efron 1979) of the ratio of force MAE to force RMS of some atoms.

    Whole structures are drawn, because atoms of the same structure are correlated. The result is
    None with fewer than three structures, or if an error is not finite.
    """
    if "forces" not in predictions.pairs:
        return None
    pairs = predictions.forces[atoms]
    labelled = np.isfinite(pairs[..., 0]).all(axis=1)
    reference = pairs[labelled, :, 0]
    error = pairs[labelled, :, 1] - reference
    structures, index = np.unique(predictions.structure_index[atoms][labelled], return_inverse=True)
    if len(structures) < FEWEST_TO_DRAW or not np.isfinite(error).all():
        return None

    # per structure: sums over the components of its atoms of this element
    components = 3.0 * np.bincount(index)
    absolute = np.bincount(index, np.abs(error).sum(axis=1))
    square = np.bincount(index, (reference**2).sum(axis=1))

    # a fixed seed, because the same predictions must always give the same file
    generator = np.random.default_rng(0)
    equal = np.full(len(structures), 1 / len(structures))
    times_drawn = generator.multinomial(len(structures), equal, size=NUM_DRAWS)
    number = times_drawn @ components
    rms = np.sqrt(times_drawn @ square / number)
    if not rms.all():
        return None
    low, high = np.quantile(times_drawn @ absolute / number / rms, INTERVAL)
    return float(low), float(high)


def _select(
    predictions: Predictions,
    structures: np.ndarray | slice,
    atoms: np.ndarray | slice,
    labels: list[Label] | None = None,
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """MAE and RMS by label: per-atom labels over `atoms`, the others over `structures`."""
    mae: dict[str, float | None] = {}
    rms: dict[str, float | None] = {}
    for label in labels or LABELS.values():
        if label.name not in predictions.pairs:
            continue
        chosen = atoms if label.per == "atom" else structures
        pairs = predictions.comparable[label.name][chosen]
        mae[label.name] = mean_absolute(pairs)
        if label.per == "atom":
            rms[label.name] = root_mean_square(pairs[..., 0])
    return mae, rms


# --- reading


def _errors(
    content: Mapping[str, Any],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """MAE and RMS by label, in the order of the file; missing keys are left out."""
    mae = {MAE_KEYS[key]: _number(content, key) for key in content if key in MAE_KEYS}
    rms = {RMS_KEYS[key]: _number(content, key) for key in content if key in RMS_KEYS}
    return mae, rms


def _number(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    # bool is a subclass of int in Python
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise SummaryError(f"{key}: {value!r} is not a number")


def _interval(content: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise SummaryError(f"{key}: {value!r} is not a lower and an upper bound")
    low, high = (_number({key: bound}, key) for bound in value)
    if low is None or high is None:
        raise SummaryError(f"{key}: {value!r} is not a lower and an upper bound")
    return low, high


def _count(content: Mapping[str, Any], key: str) -> int:
    value = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise SummaryError(f"{key}: {value!r} is not a count")


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise SummaryError("not an object")
    value = content.get(key, {})
    if not isinstance(value, Mapping):
        raise SummaryError(f"{key}: not an object")
    return value
