"""Fit a head to the labels of a file, and put it into a model folder.

    1  read the structures, each with its label
    2  hold out some of them, by composition
    3  compute features of all atoms with the frozen network, and append a one-hot element;
       equivariant features also get random functions; with network=trained, a copy of the
       network is first trained on the labels, and gives the features (`network.py`)
    4  make one row for each number of a label; predictions are linear in the weights
    5  fit in closed form by ridge regression; classes by a convex fit
    6  compute errors on the held-out structures, and those of a trivial guess

A charge row is phi_i - mean(phi), so that charges add up to the net charge for any weights. A
dipole row is sum_i (r_i - mean(r)) phi_i for each direction. Subtracting the mean from phi does not
change it, so the same linear fit to dipoles also gives charges, without labels of charges.

Equivariant features have other rows (`equivariant.py`). If a spread is requested, the size of the
errors on left-out structures is learned in the same way (`spread.py`).

Shapes: S structures, N atoms of a structure, F features, Z elements, P = F + Z columns, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ...core.files import file_errors
from ...model_zoo.heads.description import KINDS, Features, HeadDescription, HeadError
from ...model_zoo.heads.features import batch_of, carried_features
from ...model_zoo.heads.head import Answer, Head, net_charge
from ...model_zoo.heads.states import states_of
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.network.interface import CarriedFeatures
from ...model_zoo.potential.potential import Potential
from .config import HeadConfig
from .couplings import CouplingRows, coupling_figures, coupling_rows
from .equivariant import fit_equivariant
from .figures import (
    class_figures,
    flat,
    number_figures,
    relative_figures,
    sign_figures,
    spread_figures,
)
from .labels import LabelError, LabelledFrames, read_labelled
from .logistic import logistic
from .network import Trained, train_network
from .ridge import ridge
from .split import groups_of, held_out
from .spread import fit_spread, left_out_errors, with_spread
from .states import fit_states
from .weights import Weights


def fit_head(
    model: LoadedModel,
    data: Path | str,
    config: HeadConfig,
    say: Callable[[str], None] = print,
    *,
    quiet: bool = True,
) -> Head:
    """Fit a head for the property that `config` names to a file that ASE reads.

    The head is fitted without the held-out structures, and not again with them, so that its errors
    belong to exactly these weights.

    say: is called with one line for each step.
    quiet: show no progress when a network is trained.

    Raises SourceError and LabelError for a file that cannot be used; see `read_labelled`. Raises
    HeadError if the head needs equivariant features and the network has no vectors.
    """
    data = Path(data)
    _check_carried(model.potential, config)
    labelled = read_labelled(data, config, model.record.symbols)
    classes = labelled.labels if labelled.classes else None
    is_test = held_out(labelled.frames, config, data, classes)
    with file_errors(data):
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
    say(f"{len(is_test)} structures, of which {is_test.sum()} are held out by {config.split}")
    if labelled.skipped:
        say(f"left out: {labelled.skipped} structures without {config.label_key!r}")

    train = np.flatnonzero(~is_test)
    test = np.flatnonzero(is_test)
    untested = _untested_classes(labelled, test)
    if untested:
        say(f"no structure of {', '.join(untested)} is held out, so the errors are without it")

    trained = None
    if config.network == "trained":
        trained = _trained(model.potential, labelled, train, config, data, say, quiet=quiet)
    potential = model.potential if trained is None else trained.potential
    features = features_of(potential, labelled, config.head_features)
    elements = np.unique(np.concatenate([labelled.frames[s].numbers for s in train]))
    weights = fit_weights(labelled, features, train, elements, config, potential)

    about = HeadDescription(
        name=config.head_name,
        kind=config.head,
        unit=config.head_unit,
        extensive=config.extensive,
        classes=labelled.classes,
        num_states=len(labelled.labels[0]) if config.head == "states" else 0,
        features=config.head_features,
        num_functions=config.head_functions,
        trained_steps=0 if trained is None else trained.best_step,
        level_of_theory=labelled.level_of_theory,
        data=data.name,
        sha256=digest,
        licence=config.licence,
        num_structures=len(train),
        num_held_out=len(test),
        split=config.split,
        elements=[chemical_symbols[z] for z in elements],
        silent_elements=_silent_elements(labelled, train, elements, config),
        spread=config.spread,
        regularisation=weights.penalty,
        errors={},
        guess={},
    )
    head = Head(
        about,
        weights.weight,
        weights.bias,
        weights.expansion,
        weights.spread_weight,
        weights.spread_bias,
        None if trained is None else trained.potential,
    )
    predictions = [head.predict(features[s], labelled.frames[s]) for s in test]
    guesses = trivial_guesses(labelled, train, test, config)
    labels = [labelled.labels[s] for s in test]
    errors = figures_of(predictions, labels, config)
    guess = figures_of(guesses, labels, config)
    if config.spread:
        spreads = [head.predict_spread(features[s], labelled.frames[s]) for s in test]
        # all components of a vector or tensor share one spread
        repeats = 3 ** KINDS[config.head].rank
        spread = np.repeat(flat(spreads), repeats)
        errors |= spread_figures(flat(predictions) - flat(labels), spread)
    judged = [int(s) for s in test if labelled.couplings and labelled.couplings[s] is not None]
    if judged:
        errors |= _coupling_errors(model.potential, head, labelled, judged)
    about = about.model_copy(update={"errors": errors, "guess": guess})
    return dataclasses.replace(head, description=about)


def _trained(
    potential: Potential,
    labelled: LabelledFrames,
    train: np.ndarray,
    config: HeadConfig,
    data: Path,
    say: Callable[[str], None],
    *,
    quiet: bool,
) -> Trained | None:
    """Train a copy of the network on the structures at the indices `train`.

    Some of them are left out to choose the best step, by the same rule as the held-out structures.
    Returns None if no step is better than the frozen network. Raises LabelError if none can be left
    out.
    """
    frames = [labelled.frames[s] for s in train]
    rule = config.model_copy(update={"held_out": config.training.left_out})
    try:
        is_left_out = held_out(frames, rule, data)
    except LabelError as error:
        error.remedy = f"{error.remedy}, or set network=frozen, which leaves out no more"
        raise
    learned = train[~is_left_out]
    left_out = train[is_left_out]
    elements = np.unique(np.concatenate([labelled.frames[s].numbers for s in learned]))

    features = features_of(potential, labelled, config.head_features)
    start = fit_weights(labelled, features, learned, elements, config, potential)
    say(f"training a network of its own: {len(learned)} structures, {len(left_out)} left out")
    trained = train_network(
        potential, labelled, start, learned, left_out, elements, config, quiet=quiet
    )
    before = trained.losses[0][1]
    if trained.best_step == 0:
        say(f"no step was better than the frozen network (loss {before:.3g}), which stays")
        return None
    best = min(loss for _, loss in trained.losses)
    say(f"loss on what was left out: {before:.3g} before, {best:.3g} at step {trained.best_step}")
    return trained


def _coupling_errors(
    potential: Potential, head: Head, labelled: LabelledFrames, places: Sequence[int]
) -> dict[str, float]:
    """Errors of the couplings of the structures at the indices `places`, which have labels."""
    states = []
    labels = []
    for s in places:
        atoms = labelled.frames[s]
        states.append(states_of(potential, batch_of(potential, [atoms]), atoms, head))
        wanted = labelled.couplings[s]
        assert wanted is not None
        labels.append(wanted)
    return coupling_figures(states, labels)


def _check_carried(potential: Potential, config: HeadConfig) -> None:
    """Raise HeadError if the head needs equivariant features and the network has no vectors."""
    num_vectors, _ = potential.backbone.num_carried
    if config.head_features == "equivariant" and num_vectors == 0:
        network = potential.config.network.architecture
        raise HeadError(
            f"head={config.head} needs vectors of each atom, and a {network} network of these "
            "settings has none",
            remedy="take a model with the network gaunt and l_max of 1 or more",
        )


def _untested_classes(labelled: LabelledFrames, test: np.ndarray) -> list[str]:
    """Names of the classes that no structure at the indices `test` has."""
    tested = {labelled.labels[s] for s in test} if labelled.classes else set()
    return [name for place, name in enumerate(labelled.classes) if place not in tested]


def _silent_elements(
    labelled: LabelledFrames, train: np.ndarray, elements: np.ndarray, config: HeadConfig
) -> list[str]:
    """Symbols of the elements without any labelled atom."""
    if not KINDS[config.head].can_be_partial:
        return []
    numbers = np.concatenate([labelled.frames[s].numbers for s in train])
    has_label = np.concatenate([_has_label(labelled.labels[s]) for s in train])
    return [chemical_symbols[z] for z in elements if not has_label[numbers == z].any()]


def _has_label(labels: np.ndarray) -> np.ndarray:
    """Mask (N,) of the atoms that have a label, from labels (N, ...)."""
    found: np.ndarray = np.isfinite(labels).reshape(len(labels), -1).all(axis=1)
    return found


def features_of(
    potential: Potential, labelled: LabelledFrames, features: Features
) -> list[CarriedFeatures]:
    """The features of each structure, from the network of `potential`."""
    return list(carried_features(potential, labelled.frames, features))


def fit_weights(
    labelled: LabelledFrames,
    features: list[CarriedFeatures],
    train: np.ndarray,
    elements: np.ndarray,
    config: HeadConfig,
    potential: Potential,
) -> Weights:
    """Fit the weights to the structures at the indices `train`.

    features: of all structures. elements: (Z,) atomic numbers, each with a bias.
    potential: gives derivatives of the features if couplings of states are labels.
    """
    if config.head_features == "equivariant":
        return fit_equivariant(labelled, features, train, elements, config)
    invariants = {s: features[s].invariants.double().numpy() for s in train}
    stacked = np.concatenate([invariants[s] for s in train])
    # centre the features: rows are small differences, and a large common part would cost digits
    centre = stacked.mean(axis=0)
    rows = []
    for s in train:
        numbers = labelled.frames[s].numbers
        one_hot = (numbers[:, None] == elements[None, :]).astype(float)
        atom_rows = np.hstack([invariants[s] - centre, one_hot])  # (N, P)
        own_rows = _rows_of(atom_rows, labelled.frames[s].positions, config)
        if config.head == "atom_scalar":
            own_rows = own_rows[np.isfinite(labelled.labels[s])]
        rows.append(own_rows)
    matrix = np.concatenate(rows)

    # scale the features, because the penalty acts differently on features of different size
    num_features = len(centre)
    size = np.sqrt((matrix[:, :num_features] ** 2).mean(axis=0))
    size[size <= 1e-12 * size.max(initial=0.0)] = 1.0
    matrix[:, :num_features] /= size

    all_groups = groups_of(labelled.frames, config)
    groups = [all_groups[s] for s in train]
    if config.head == "class":
        classes = np.array([labelled.labels[s] for s in train])
        found = logistic(matrix, classes, len(labelled.classes), groups, config.seed)
        weight = found.weights[:num_features].T / size
        bias = found.weights[num_features:].T + found.constants[:, None]
        return Weights(weight, bias - (weight @ centre)[:, None], found.penalty)

    if config.head == "states":
        couplings = None
        if labelled.couplings:
            couplings = coupling_rows(
                potential,
                [labelled.frames[s] for s in train],
                [labelled.couplings[s] for s in train],
                config.head_features,
                size,
                len(elements),
            )
        return _states_weights(labelled, train, groups, matrix, size, centre, config, couplings)

    targets, column = _targets(labelled, train, config)
    solution = ridge(matrix, targets, column)
    weight = solution.weights[None, :num_features] / size
    bias = solution.weights[None, num_features:] + solution.constant
    if config.head in ("charges", "dipole"):
        # charges are shifted to the net charge, so the mean bias is arbitrary
        weights = Weights(weight, bias - bias.mean(), solution.penalty)
    else:
        weights = Weights(weight, bias - weight @ centre, solution.penalty)
    if not config.spread:
        return weights

    group_of_row = [group for group, own in zip(groups, rows, strict=True) for _ in own]
    errors = left_out_errors(matrix, targets, column, group_of_row, config.seed)
    if config.head == "dipole":
        sizes = np.array([len(labelled.frames[s]) for s in train])
        squares = (errors**2).reshape(-1, 3).mean(axis=1) / sizes
        of_atoms = [invariants[s] for s in train]
        own_frames = [labelled.frames[s] for s in train]
        return with_spread(weights, squares, of_atoms, own_frames, elements, groups, config.seed)
    assert column is not None, "scalars have one"
    # the row of a sum is the row of a mean, times the square root of the number of atoms
    of_errors = fit_spread(errors**2, matrix / column[:, None], group_of_row, config.seed)
    spread_weight = of_errors.weights[:num_features] / size
    spread_bias = of_errors.weights[num_features:] + of_errors.constant
    return dataclasses.replace(
        weights,
        spread_weight=spread_weight,
        spread_bias=spread_bias - spread_weight @ centre,
    )


def _states_weights(
    labelled: LabelledFrames,
    train: np.ndarray,
    groups: list[str],
    matrix: np.ndarray,
    size: np.ndarray,
    centre: np.ndarray,
    config: HeadConfig,
    couplings: CouplingRows | None,
) -> Weights:
    """Fit the weights of the matrix of states.

    matrix: rows (S, F + Z), with features that are centred at `centre` (F,) and divided by `size`
    (F,). groups: the group of each structure.
    """
    num_features = len(centre)
    energies = np.array([labelled.labels[s] for s in train])  # (S, K)
    # subtract composition first: it explains far more than the differences between states
    counts = matrix[:, num_features:]
    of_elements = np.linalg.lstsq(counts, energies.mean(axis=1), rcond=None)[0]
    left = energies - (counts @ of_elements)[:, None]
    found = fit_states(matrix, left, groups, config.seed, couplings)

    row, column = np.triu_indices(energies.shape[1])
    weight = found.weights[:num_features].T / size  # (M, F)
    bias = found.weights[num_features:].T + np.outer(row == column, of_elements)
    return Weights(weight, bias - (weight @ centre)[:, None], found.penalty)


def _rows_of(atom_rows: np.ndarray, positions: np.ndarray, config: HeadConfig) -> np.ndarray:
    """Rows of one structure, from the rows (N, P) of its atoms and positions (N, 3)."""
    if config.head == "charges":
        return atom_rows - atom_rows.mean(axis=0)
    if config.head == "dipole":
        arms = positions - positions.mean(axis=0)
        return arms.T @ atom_rows
    if config.head == "atom_scalar":
        return atom_rows
    if config.head == "states":
        return atom_rows.sum(axis=0, keepdims=True)
    if config.extensive:
        # the error of a sum grows with the square root of the number of terms
        return atom_rows.sum(axis=0, keepdims=True) / np.sqrt(len(atom_rows))
    return atom_rows.mean(axis=0, keepdims=True)


def _targets(
    labelled: LabelledFrames, train: np.ndarray, config: HeadConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """Targets of all rows, and the column that is not penalised, or None."""
    labels = [labelled.labels[s] for s in train]
    if config.head == "charges":
        # centred, because rounded labels do not add up exactly to the net charge
        return flat([charges - charges.mean() for charges in labels]), None
    if config.head == "dipole":
        return flat(labels), None
    if config.head == "atom_scalar":
        of_atoms = flat(labels)
        of_atoms = of_atoms[np.isfinite(of_atoms)]
        return of_atoms, np.ones(len(of_atoms))
    numbers = np.array(labels)
    if config.extensive:
        roots = np.sqrt([len(labelled.frames[s]) for s in train])
        return numbers / roots, roots
    return numbers, np.ones(len(numbers))


def trivial_guesses(
    labelled: LabelledFrames, train: np.ndarray, test: np.ndarray, config: HeadConfig
) -> list[Answer]:
    """Predictions without a model, for each structure at the indices `test`.

    - charges: the mean charge of each element, shifted to the net charge
    - dipole, vector or pseudoscalar: zero
    - scalar: the mean, or the mean per atom if extensive
    - tensor: isotropic, with the mean trace per atom
    - class: the frequencies of the classes
    - states: a linear fit to the composition
    - properties of atoms: the mean of the element; zero for vectors, isotropic for tensors
    """
    frames = labelled.frames
    labels = labelled.labels
    if KINDS[config.head].per == "atom" and config.head != "charges":
        return _guesses_for_atoms(labelled, train, test)
    if config.head == "charges":
        mean = _mean_charges(labelled, train)
        guesses: list[Answer] = []
        for s in test:
            raw = np.array([mean[z] for z in frames[s].numbers])
            guesses.append(raw - raw.mean() + net_charge(frames[s]) / len(raw))
        return guesses
    if KINDS[config.head].rank == 1:
        return [np.zeros(3) for _ in test]
    if config.head == "pseudoscalar":
        return [0.0 for _ in test]
    if KINDS[config.head].rank == 2:
        num_atoms = sum(len(frames[s]) for s in train)
        third = sum(np.trace(labels[s]) for s in train) / num_atoms / 3
        return [third * len(frames[s]) * np.eye(3) for s in test]
    if config.head == "class":
        counts = np.bincount([labels[s] for s in train], minlength=len(labelled.classes))
        shares = counts / counts.sum()
        return [dict(zip(labelled.classes, shares.tolist(), strict=True)) for _ in test]
    if config.head == "states":
        return _guesses_for_states(labelled, train, test)
    if config.extensive:
        num_atoms = sum(len(frames[s]) for s in train)
        of_an_atom = sum(labels[s] for s in train) / num_atoms
        return [of_an_atom * len(frames[s]) for s in test]
    mean_label = float(np.mean([labels[s] for s in train]))
    return [mean_label for _ in test]


def _guesses_for_atoms(
    labelled: LabelledFrames, train: np.ndarray, test: np.ndarray
) -> list[Answer]:
    """Guesses for atoms: the mean of the element, zero for vectors, isotropic for tensors.

    NaN for elements without labels.
    """
    numbers = np.concatenate([labelled.frames[s].numbers for s in train])
    labels = np.concatenate([labelled.labels[s] for s in train])  # (N, ...)
    has_label = _has_label(labels)
    of_element: dict[int, np.ndarray] = {}
    for z in np.unique(numbers):
        own = labels[has_label & (numbers == z)]
        if labels.ndim == 2 or not len(own):
            # vectors average to zero; an element without labels has no guess
            of_element[z] = np.full(labels.shape[1:], 0.0 if len(own) else np.nan)
            continue
        mean = own.mean(axis=0)
        of_element[z] = mean if labels.ndim == 1 else np.trace(mean) / 3 * np.eye(3)
    return [np.array([of_element[z] for z in labelled.frames[s].numbers]) for s in test]


def _guesses_for_states(
    labelled: LabelledFrames, train: np.ndarray, test: np.ndarray
) -> list[Answer]:
    """Energies of the states by a linear fit to the composition."""
    frames = labelled.frames
    elements = np.unique(np.concatenate([frames[s].numbers for s in train]))
    counts = np.array([[(atoms.numbers == z).sum() for z in elements] for atoms in frames])
    energies = np.array([labelled.labels[s] for s in train])
    of_elements = np.linalg.lstsq(counts[train].astype(float), energies, rcond=None)[0]
    return list(counts[test] @ of_elements)


def _mean_charges(labelled: LabelledFrames, train: np.ndarray) -> dict[int, float]:
    """Atomic number -> mean charge in e."""
    numbers = np.concatenate([labelled.frames[s].numbers for s in train])
    charges = flat([labelled.labels[s] for s in train])
    return {int(z): float(charges[numbers == z].mean()) for z in np.unique(numbers)}


def figures_of(answers: list[Any], labels: list[Any], config: HeadConfig) -> dict[str, float]:
    """Error figures of predictions; `figures.py` defines them."""
    if config.head == "class":
        probabilities = np.array([list(answer.values()) for answer in answers])
        return class_figures(probabilities, np.array(labels))
    about = KINDS[config.head]
    predicted = flat(answers)
    wanted = flat(labels)
    # leave out atoms without a label, and atoms of elements without labels in the fit
    is_known = np.isfinite(predicted) & np.isfinite(wanted)
    figures = number_figures(predicted[is_known], wanted[is_known])
    if about.rank == 2:
        tensors = is_known.reshape(-1, 9).all(axis=1)
        figures |= relative_figures(
            predicted.reshape(-1, 3, 3)[tensors], wanted.reshape(-1, 3, 3)[tensors]
        )
    if config.head == "pseudoscalar":
        figures |= sign_figures(np.array(answers), np.array(labels))
    return figures
