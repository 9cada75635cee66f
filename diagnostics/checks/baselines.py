"""Is the network worth it? Compares the model with simple regressions on the same structures.

The regressions learn from some training structures of a data set, and predict the energies of other
structures:

- composition: linear in the number of atoms of each element;
- linear: linear in these numbers and in the model's features, averaged over the atoms;
- kernel: the composition regression plus a Gaussian process on the mean features of a structure.

A model that was trained on the level of theory must beat all three. If the linear or the kernel
regression wins, the features contain information that the head does not use, and fine-tuning should
help. The Gaussian process also predicts its spread. Its rank correlations with the errors of the
Gaussian process and of the model are what a record of uncertainty has to beat (`check trust`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from rich.progress import track
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from ..check import CheckedModel, CheckError, CheckResult, Figure
from .trust import answerable


if TYPE_CHECKING:
    from ...data_pipelines.structure import Structure
    from ...model_zoo.potential.potential import Potential


# Ridge penalties that are tried, relative to the mean of the squared singular values.
STRENGTHS = np.logspace(-8, 2, 21)
FEWEST = 10
KERNEL = "kernel of its features"


def check(
    model: CheckedModel,
    data: Annotated[Path, typer.Argument(help="folder of a converted data set with energies")],
    split: Annotated[
        Literal["valid", "test"], typer.Option(help="structures that are predicted")
    ] = "test",
    most: Annotated[
        int, typer.Option(min=FEWEST, help="training structures that the regressions learn from")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="chooses them")] = 0,
) -> CheckResult:
    """Energy errors of the model and of regressions on composition and features.

    Judged on structures that were not used for training. The regressions learn from the training
    split.

    Example: evenfield check baselines runs/mine/model runs/data
    """
    level = model.level
    rng = np.random.default_rng(seed)
    learned, _ = _learnable(data, "train", model)
    if len(learned) < FEWEST:
        raise CheckError(
            f"has {len(learned)} training structures with energies at {level}",
            file=data,
            remedy=f"name data with {FEWEST} or more",
        )
    chosen = rng.permutation(len(learned))[:most]
    potential = model.loaded.potential
    train = described([learned[index] for index in chosen], potential, "training structures")
    judged, left_out = _learnable(data, split, model)
    if not judged:
        raise CheckError(
            f"has no {split} structure with an energy at {level}",
            file=data,
            remedy="name other data, or another split with --split",
        )
    test = described(judged, potential, f"{split} structures")

    predictions, spread = regressions(train, test)
    errors = {"this model": test.model - test.energy} | {
        name: predicted - test.energy for name, predicted in predictions.items()
    }
    means = {name: 1000 * float(np.abs(error).mean()) for name, error in errors.items()}
    figures = [Figure(f"energy MAE, {name}", mean, "meV/atom") for name, mean in means.items()]
    own = means.pop("this model")
    best = min(means, key=lambda name: means[name])
    figures.append(
        Figure("energy MAE over that of the best regression", own / means[best], "", limit=1.0)
    )
    orders = {}
    for name in ("this model", KERNEL):
        orders[name] = float(spearmanr(spread, np.abs(errors[name])).statistic)
        figures.append(Figure(f"rank correlation of the spread, {name}", orders[name], ""))
    lines = [
        *left_out,
        f"{len(test.energy)} structures of the {split} split, {len(train.energy)} to learn from",
        f"this model: {own:.1f} meV/atom",
        *(f"{name}: {mean:.1f} meV/atom" for name, mean in means.items()),
        f"the spread of the Gaussian process orders its own errors with a rank correlation of "
        f"{orders[KERNEL]:.2f}, and those of this model with {orders['this model']:.2f}",
    ]
    return CheckResult(figures, lines)


def _learnable(data: Path, split: str, model: CheckedModel) -> tuple[list[Structure], list[str]]:
    """Structures of a split that have an energy and only known elements, and lines about the rest.

    The energies are those that the network learns: without the analytic physics of the model.
    """
    from ...data_pipelines.physics.residual import as_learned

    chosen, left_out = answerable(data, split, model)
    physics = model.loaded.potential.config.physics
    usable = [one for one in as_learned(chosen, data, physics) if one.energy is not None]
    if len(usable) < len(chosen):
        left_out.append(f"left out: {len(chosen) - len(usable)} without an energy")
    return usable, left_out


@dataclass(frozen=True)
class Described:
    """Descriptors and energies of S structures, all per atom.

    counts: (S, 119) fraction of each element, by atomic number. features: (S, d) means over the
    atoms. energy: (S,) labels in eV/atom. model: (S,) predictions of the model in eV/atom.
    """

    counts: np.ndarray
    features: np.ndarray
    energy: np.ndarray
    model: np.ndarray


def described(structures: list[Structure], potential: Potential, what: str) -> Described:
    """Compute the composition, features and energies of structures.

    what: text of the progress bar.
    """
    import torch

    from ...data_pipelines.batch import Batch

    config = potential.config
    dtype = potential.readout.weight.dtype
    counts = []
    features = []
    energies = []
    predicted = []
    for one in track(structures, what, transient=True):
        number = len(one.atomic_numbers)
        batch = Batch.from_structure(one, config.cutoff, config.levels_of_theory, dtype)
        with torch.no_grad():
            vectors, tiles = potential.edge_vectors(batch)
            of_atoms = potential.features(batch.atomic_numbers, vectors, tiles)
            energy = float(potential(batch).energy)
        counts.append(np.bincount(one.atomic_numbers, minlength=119) / number)
        features.append(of_atoms.mean(dim=0).double().numpy())
        assert one.energy is not None
        energies.append(one.energy / number)
        predicted.append(energy / number)
    return Described(np.array(counts), np.array(features), np.array(energies), np.array(predicted))


def regressions(train: Described, test: Described) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fit the three regressions to `train`, and predict the T structures of `test`.

    Returns name -> predictions (T,), and the spread (T,) of the Gaussian process, all in eV/atom.
    """
    # subtract the mean first, so that a penalised column need not describe thousands of eV
    mean = train.energy.mean()
    target = train.energy - mean
    composition = ridge(train.counts, target)
    rest = target - train.counts @ composition
    of_composition = test.counts @ composition

    both = np.hstack([train.counts, standardised(train.features, train.features)])
    linear = ridge(both, target)
    of_linear = np.hstack([test.counts, standardised(test.features, train.features)]) @ linear
    of_kernel, spread = gaussian_process(train.features, rest, test.features)
    predictions = {
        "composition": mean + of_composition,
        "linear in its features": mean + of_linear,
        KERNEL: mean + of_composition + of_kernel,
    }
    return predictions, spread


def standardised(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Columns of `values`, standardised with the means and standard deviations of `like`."""
    deviation = like.std(axis=0)
    # a constant feature cannot be scaled
    scale = np.where(deviation > 0, deviation, 1.0)
    return (values - like.mean(axis=0)) / scale


def ridge(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of the ridge regression with the smallest leave-one-out error.

        w = (X^T X + a I)^-1 X^T y,   residual left out = (y - X w)_i / (1 - h_ii)

    (Allen, Technometrics 16, 125, 1974). h are the leverages.
    """
    left, sizes, right = np.linalg.svd(columns, full_matrices=False)
    along = left.T @ target
    scale = np.square(sizes).mean()
    least = np.inf
    best = np.zeros(columns.shape[1])
    for strength in STRENGTHS * scale:
        shrinkage = sizes**2 / (sizes**2 + strength)
        residual = target - left @ (shrinkage * along)
        leverage = np.square(left) @ shrinkage
        error = float(np.square(residual / np.maximum(1 - leverage, 1e-9)).mean())
        if error < least:
            least = error
            best = right.T @ (sizes / (sizes**2 + strength) * along)
    return best


def gaussian_process(
    points: np.ndarray, target: np.ndarray, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means (A,) and standard deviations (A,) of a Gaussian process at the points `asked` (A, d).

    points: (P, d). target: (P,). The kernel is a squared exponential on standardised columns. The
    standard deviation includes the noise of the targets.

    The length scale is 0.5, 1, 2 or 4 times the median distance of the points. Length scale and
    noise maximise the evidence (Rasmussen and Williams, Gaussian Processes for Machine Learning,
    2006, equation 5.8).
    """
    own = standardised(points, points)
    distances = cdist(own, own)
    others = cdist(standardised(asked, points), own)
    median = np.median(distances[np.triu_indices(len(own), 1)]) or 1.0
    variance = target.var() or 1.0

    least = np.inf
    best = np.zeros(len(asked)), np.full(len(asked), variance**0.5)
    for factor in (0.5, 1.0, 2.0, 4.0):
        kernel = variance * np.exp(-0.5 * (distances / (factor * median)) ** 2)
        for noise in np.logspace(-6, 0, 7):
            noisy = kernel + noise * variance * np.eye(len(own))
            factorised = cho_factor(noisy, lower=True)
            weights = cho_solve(factorised, target)
            # minus twice the logarithm of the evidence, up to a constant
            missing = target @ weights + 2 * np.log(np.diag(factorised[0])).sum()
            if missing < least:
                least = missing
                covariance = variance * np.exp(-0.5 * (others / (factor * median)) ** 2)
                explained = (covariance * cho_solve(factorised, covariance.T).T).sum(axis=1)
                # by rounding, the explained variance may exceed the total
                left = np.maximum(variance - explained, 0.0) + noise * variance
                best = covariance @ weights, np.sqrt(left)
    return best
