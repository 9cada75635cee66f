"""Is the network worth it? Simple regressions on the same structures, beside the model.

From some training structures of a data set, the energies of others are predicted by

- composition: a number for each element;
- linear: that, and a number for each feature of the model, summed over the atoms;
- kernel: that of composition, and a Gaussian process on the mean feature vector of a structure.

A model that was trained on the level of theory must beat all three. Where the linear or the kernel
regression wins, the features know more than the head makes of them, and a fine-tuning pays. The
Gaussian process also says how sure it is: the rank correlation of its spread with the errors, its
own and the model's, is what a record of uncertainty has to beat (`check trust`).
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


# Penalties and noises that are tried, relative to the mean square of the columns.
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
    """Energies of the model beside regressions on composition and on its own features.

    Judged on structures that no training has seen; the regressions learn from the training split.

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
    """Structures of a split with an energy, less the model's physics, that the model answers for.

    The second result has a line for each kind of the others.
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
    """Structures as rows of numbers, all per atom.

    counts: (S, 119) shares of the elements. features: (S, d) means over the atoms.
    energy, model: (S,) eV/atom, the label and what the model predicts.
    """

    counts: np.ndarray
    features: np.ndarray
    energy: np.ndarray
    model: np.ndarray


def described(structures: list[Structure], potential: Potential, what: str) -> Described:
    """Composition, features and energies of structures, with progress."""
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
    """Name -> predictions (T,) for the test structures, and the spread (T,) of the kernel's.

    All in eV/atom.
    """
    # the mean first: energies of thousands of eV must not lean on a penalised column
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
    """Columns shifted and scaled to the mean and deviation that those of `like` have."""
    deviation = like.std(axis=0)
    # a feature that never changes says nothing
    scale = np.where(deviation > 0, deviation, 1.0)
    return (values - like.mean(axis=0)) / scale


def ridge(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of the ridge regression with the least leave-one-out error.

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
    """Means and standard deviations of a Gaussian process at `asked`.

    The kernel is a squared exponential; the deviation includes the noise of the targets.

    Columns are standardised. The length is the median distance of the points, or a half, a double
    or a quadruple of it; length and noise are those of the largest evidence (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, equation 5.8).
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
                # rounding may explain more than there is
                left = np.maximum(variance - explained, 0.0) + noise * variance
                best = covariance @ weights, np.sqrt(left)
    return best
