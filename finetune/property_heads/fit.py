"""Fit a head to the labels of a file, and put it into a model folder.

    1  read the structures, each with its label
    2  hold out some of them, by composition
    3  features of all atoms from the frozen network, to which a one-hot element is appended
    4  rows: one for each number that a label states, linear in the weights
    5  closed form: ridge regression; for classes a convex fit
    6  errors on what was held out, next to those of a trivial guess

A charge row is phi_i - mean(phi), so that charges add up to the net charge whatever the weights
are. A dipole row is sum_i (r_i - mean(r)) phi_i for each direction, which is the same with the mean
taken off phi: charges that were never labelled follow from dipoles by the same linear fit.

Shapes: S structures, N atoms of one, F features, Z elements, P = F + Z columns, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ...core.files import file_errors
from ...model_zoo.heads.description import Features, HeadDescription
from ...model_zoo.heads.features import atom_features
from ...model_zoo.heads.head import Answer, Head, net_charge
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.potential.potential import Potential
from .config import HeadConfig
from .figures import class_figures, flat, number_figures
from .labels import LabelledFrames, read_labelled
from .logistic import logistic
from .ridge import ridge
from .split import groups_of, held_out


@dataclass(frozen=True)
class Weights:
    """What a fit found, in the order of a `Head`."""

    weight: np.ndarray
    """(K, F)"""
    bias: np.ndarray
    """(K, Z)"""
    penalty: float


def fit_head(
    model: LoadedModel, data: Path | str, config: HeadConfig, say: Callable[[str], None] = print
) -> Head:
    """A head of the property that `config` names, fitted to a file that ASE reads.

    The weights are those of the structures that were not held out: its errors belong to exactly
    this head.

    Raises SourceError and LabelError for what cannot be learned from; see `read_labelled`.
    """
    data = Path(data)
    labelled = read_labelled(data, config, model.record.symbols)
    is_test = held_out(labelled.frames, config, data)
    with file_errors(data):
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
    say(f"{len(is_test)} structures, of which {is_test.sum()} are held out by {config.split}")

    features = features_of(model.potential, labelled, config.features)
    train = np.flatnonzero(~is_test)
    test = np.flatnonzero(is_test)
    elements = np.unique(np.concatenate([labelled.frames[s].numbers for s in train]))
    weights = fit_weights(labelled, features, train, elements, config)

    about = HeadDescription(
        name=config.head_name,
        kind=config.head,
        unit=config.head_unit,
        extensive=config.extensive,
        classes=labelled.classes,
        features=config.features,
        level_of_theory=labelled.level_of_theory,
        data=data.name,
        sha256=digest,
        licence=config.licence,
        num_structures=len(train),
        num_held_out=len(test),
        split=config.split,
        elements=[chemical_symbols[z] for z in elements],
        regularisation=weights.penalty,
        errors={},
        guess={},
    )
    head = Head(about, weights.weight, weights.bias)
    predictions = [head.predict(features[s], labelled.frames[s]) for s in test]
    guesses = trivial_guesses(labelled, train, test, config)
    labels = [labelled.labels[s] for s in test]
    errors = figures_of(predictions, labels, config)
    guess = figures_of(guesses, labels, config)
    return Head(about.model_copy(update={"errors": errors, "guess": guess}), head.weight, head.bias)


def features_of(
    potential: Potential, labelled: LabelledFrames, features: Features
) -> list[np.ndarray]:
    """Features (N, F) of each structure."""
    return list(atom_features(potential, labelled.frames, features))


def fit_weights(
    labelled: LabelledFrames,
    features: list[np.ndarray],
    train: np.ndarray,
    elements: np.ndarray,
    config: HeadConfig,
) -> Weights:
    """Weights of the structures at the places `train`, with a bias for each of `elements` (Z,)."""
    stacked = np.concatenate([features[s] for s in train])
    # rows are small differences of features, whose common part would only cost digits
    centre = stacked.mean(axis=0)
    rows = []
    for s in train:
        numbers = labelled.frames[s].numbers
        one_hot = (numbers[:, None] == elements[None, :]).astype(float)
        atom_rows = np.hstack([features[s] - centre, one_hot])  # (N, P)
        rows.append(_rows_of(atom_rows, labelled.frames[s].positions, config))
    matrix = np.concatenate(rows)

    # features of very different size would be penalised differently
    num_features = len(centre)
    size = np.sqrt((matrix[:, :num_features] ** 2).mean(axis=0))
    size[size <= 1e-12 * size.max(initial=0.0)] = 1.0
    matrix[:, :num_features] /= size

    if config.head == "class":
        classes = np.array([labelled.labels[s] for s in train])
        all_groups = groups_of(labelled.frames, config)
        groups = [all_groups[s] for s in train]
        found = logistic(matrix, classes, len(labelled.classes), groups, config.seed)
        weight = found.weights[:num_features].T / size
        bias = found.weights[num_features:].T + found.constants[:, None]
        return Weights(weight, bias - (weight @ centre)[:, None], found.penalty)

    targets, column = _targets(labelled, train, config)
    solution = ridge(matrix, targets, column)
    weight = solution.weights[None, :num_features] / size
    bias = solution.weights[None, num_features:] + solution.constant
    if config.head in ("charges", "dipole"):
        # a constant added to all charges is taken off again, so the mean bias can be anything
        return Weights(weight, bias - bias.mean(), solution.penalty)
    return Weights(weight, bias - weight @ centre, solution.penalty)


def _rows_of(atom_rows: np.ndarray, positions: np.ndarray, config: HeadConfig) -> np.ndarray:
    """Rows of one structure from those of its atoms (N, P)."""
    if config.head == "charges":
        return atom_rows - atom_rows.mean(axis=0)
    if config.head == "dipole":
        arms = positions - positions.mean(axis=0)
        return arms.T @ atom_rows
    if config.extensive:
        # the error of a sum grows like the root of the number of its terms
        return atom_rows.sum(axis=0, keepdims=True) / np.sqrt(len(atom_rows))
    return atom_rows.mean(axis=0, keepdims=True)


def _targets(
    labelled: LabelledFrames, train: np.ndarray, config: HeadConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the rows of the structures should give, and the column that is not penalised."""
    labels = [labelled.labels[s] for s in train]
    if config.head == "charges":
        # rounding keeps labels from adding up to the net charge
        return flat([charges - charges.mean() for charges in labels]), None
    if config.head == "dipole":
        return flat(labels), None
    numbers = np.array(labels)
    if config.extensive:
        roots = np.sqrt([len(labelled.frames[s]) for s in train])
        return numbers / roots, roots
    return numbers, np.ones(len(numbers))


def trivial_guesses(
    labelled: LabelledFrames, train: np.ndarray, test: np.ndarray, config: HeadConfig
) -> list[Answer]:
    """What one would say without a model, for each structure at the places `test`.

    The mean charge of the element, shifted to the net charge; no dipole; the mean of a scalar, for
    an extensive one that of an atom; the frequencies of the classes.
    """
    frames = labelled.frames
    labels = labelled.labels
    if config.head == "charges":
        mean = _mean_charges(labelled, train)
        guesses: list[Answer] = []
        for s in test:
            raw = np.array([mean[z] for z in frames[s].numbers])
            guesses.append(raw - raw.mean() + net_charge(frames[s]) / len(raw))
        return guesses
    if config.head == "dipole":
        return [np.zeros(3) for _ in test]
    if config.head == "class":
        counts = np.bincount([labels[s] for s in train], minlength=len(labelled.classes))
        shares = counts / counts.sum()
        return [dict(zip(labelled.classes, shares.tolist(), strict=True)) for _ in test]
    if config.extensive:
        num_atoms = sum(len(frames[s]) for s in train)
        of_an_atom = sum(labels[s] for s in train) / num_atoms
        return [of_an_atom * len(frames[s]) for s in test]
    mean_label = float(np.mean([labels[s] for s in train]))
    return [mean_label for _ in test]


def _mean_charges(labelled: LabelledFrames, train: np.ndarray) -> dict[int, float]:
    """Atomic number -> mean charge."""
    numbers = np.concatenate([labelled.frames[s].numbers for s in train])
    charges = flat([labelled.labels[s] for s in train])
    return {int(z): float(charges[numbers == z].mean()) for z in np.unique(numbers)}


def figures_of(answers: list[Any], labels: list[Any], config: HeadConfig) -> dict[str, float]:
    """Errors of answers; see `figures.py`."""
    if config.head == "class":
        probabilities = np.array([list(answer.values()) for answer in answers])
        return class_figures(probabilities, np.array(labels))
    return number_figures(flat(answers), flat(labels))
