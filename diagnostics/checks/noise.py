"""Noise or ignorance? What a refit says of its labels, where noise of a known size was added.

An error has two parts. The noise of the labels (aleatoric) stays, whatever is learned. What the
model does not know (epistemic) shrinks as it learns more. A refit estimates the noise from
structures that it leaves out. A committee of readouts that explain the same labels about as well
scatters on structures that it has not seen. Here normal noise is added to the forces of some
training structures, so that the answer is known:

- the estimated noise must grow by what was added: sqrt(estimate^2 - estimate_0^2) is its size,
  with estimate_0 for labels as they are, which contains what the readout cannot express;
- the scatter must shrink with more structures, at any noise.

Noise averages out, so the errors on labels without noise are shown beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from ..check import CheckedModel, CheckError, CheckResult, Figure
from ..sanity.verdicts import with_progress
from .trust import answerable


if TYPE_CHECKING:
    from ...data_pipelines.structure import Structure
    from ...finetune.target import Target
    from ...model_zoo.hub.load import LoadedModel


MOST_TEST = 60  # structures that scatter and errors are judged on
# The estimate of noise that dominates may be off by this factor. It comes from a few structures.
TOLERANCE = 1.25
# Noise that is smaller than this share of the estimate without any is lost in it.
VISIBLE = 0.5


@dataclass(frozen=True)
class Row:
    """One refit: what was added, and what it says. All in eV/A, of components of forces."""

    num_structures: int
    added: float
    """Standard deviation of the noise."""
    estimated: float
    """Noise that the refit estimates from what it leaves out."""
    scatter: float
    """Standard deviation of the committee on test structures, root mean square."""
    error: float
    """On test structures with labels as they are, root mean square."""


def check(
    model: CheckedModel,
    data: Annotated[Path, typer.Argument(help="folder of a converted data set with forces")],
    noise: Annotated[
        list[float] | None,
        typer.Option(min=0.0, help="standard deviation of added noise, eV/A; repeat the option"),
    ] = None,
    sizes: Annotated[
        list[int] | None,
        typer.Option(min=8, help="numbers of training structures; repeat the option"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the structures and of the noise")] = 0,
) -> CheckResult:
    """Are noisy labels told from what the model does not know?

    The readout is refitted to training structures with added noise. The model does not change.

    Example: evenfield check noise runs/mine/model runs/data
    """
    added = sorted({0.0, *(noise or (0.1, 0.5))})
    numbers = sorted(sizes or (16, 64))
    train, left_out = _with_forces(data, "train", model)
    test, _ = _with_forces(data, "test", model)
    if len(train) < numbers[-1]:
        raise CheckError(
            f"has {len(train)} training structures with forces at {model.level}, fewer than "
            f"{numbers[-1]}",
            file=data,
            remedy="ask for fewer with --sizes",
        )
    drawn = np.random.default_rng(seed).permutation(len(train))[: numbers[-1]]
    every = max(1, len(test) // MOST_TEST)
    chosen = [train[index] for index in drawn]
    target = target_of(model, chosen, test[::every][:MOST_TEST])

    tasks = [(number, size) for number in numbers for size in added]
    rows = [
        refitted(model.loaded, target, number, size, seed)
        for number, size in with_progress("refits", tasks)
    ]
    figures, lines = judged(rows)
    return CheckResult(figures, [*left_out, *lines])


def _with_forces(data: Path, split: str, model: CheckedModel) -> tuple[list[Structure], list[str]]:
    """Structures with forces, less the model's physics, and a line for each kind of the others."""
    from ...data_pipelines.physics.residual import as_learned

    found, left_out = answerable(data, split, model)
    physics = model.loaded.potential.config.physics
    labelled = [one for one in as_learned(found, data, physics) if one.forces is not None]
    if not labelled:
        raise CheckError(
            f"has no {split} structure with forces at {model.level}",
            file=data,
            remedy="name data with forces and a test split",
        )
    return labelled, left_out


def target_of(model: CheckedModel, train: list[Structure], test: list[Structure]) -> Target:
    """What a refit learns from, and what it is judged on."""
    from ...finetune.target import Target
    from ...model_zoo.package.record import TrainingData

    # nothing is saved, so that nobody reads where the labels are from
    source = TrainingData(
        name="noise check",
        sha256="0" * 64,
        licence="not stated",
        description="labels with noise",
        num_structures=len(train),
    )
    physics = model.loaded.potential.config.physics
    return Target(model.level, train, [], test, source, physics=physics)


def refitted(
    loaded: LoadedModel, target: Target, num_structures: int, added: float, seed: int
) -> Row:
    """The row of one refit to the first `num_structures`, with noise on their forces."""
    from ...finetune.config import FineTuneConfig
    from ...finetune.run import finetune
    from ...finetune.safety.uncertainty import observe, uncalibrated
    from ...model_zoo.uncertainty.record import INGREDIENTS

    # the same noise for each size of it, so that only the size differs
    rng = np.random.default_rng(seed)
    train = [with_noise(one, added, rng) for one in target.train[:num_structures]]
    own_target = replace(target, train=train, valid=[])
    result = finetune(loaded, own_target, FineTuneConfig(strategy="refit", seed=seed))

    # The committee of the refit itself would not do: where labels say what the model knows already,
    # no weight moves. This one asks which other weights explain the labels about as well.
    own = uncalibrated(
        result.potential,
        target.level_of_theory,
        train,
        known={int(number) for one in train for number in one.elements},
        split="none",
    )
    seen = observe(result.potential, own, target.test)
    labelled = np.isfinite(seen.force_error)
    of_atoms = seen.ingredients[INGREDIENTS.index("committee")]
    # an ingredient is the length of a vector
    scatter = np.sqrt(np.mean(np.square(of_atoms)) / 3)
    error = np.sqrt(np.mean(np.square(seen.force_error[labelled])))
    estimated = result.posterior.noise["forces"]
    return Row(num_structures, added, float(estimated), float(scatter), float(error))


def with_noise(structure: Structure, size: float, rng: np.random.Generator) -> Structure:
    """A copy whose forces have normal noise of a size in eV/A; without forces as it is."""
    if structure.forces is None:
        return structure
    noise = rng.normal(0.0, 1.0, structure.forces.shape)
    noisy = structure.labels | {"forces": structure.forces + size * noise}
    return replace(structure, labels=noisy)


def judged(rows: list[Row]) -> tuple[list[Figure], list[str]]:
    """Whether added noise is found again, and whether scatter shrinks with more structures."""
    lines = ["structures, added noise: estimated noise, scatter, error on clean labels (eV/A)"]
    figures = []
    without = {row.num_structures: row for row in rows if row.added == 0}
    for row in rows:
        lines.append(
            f"{row.num_structures}, {row.added:g}: {row.estimated:.3g}, {row.scatter:.3g}, "
            f"{row.error:.3g}"
        )
        bare = without[row.num_structures].estimated
        if row.added < VISIBLE * max(bare, 1e-9):
            continue
        found = np.sqrt(max(row.estimated**2 - bare**2, 0.0))
        name = f"noise of {row.added:g} eV/A, {row.num_structures} structures"
        figures += [
            Figure(f"{name}: found over added", found / row.added, "", TOLERANCE, 1 / TOLERANCE),
            Figure(f"{name}: error over noise", row.error / row.added, ""),
        ]
    fewest = min(without)
    most = max(without)
    if most > fewest:
        for size in sorted({row.added for row in rows}):
            few, many = (
                next(row for row in rows if (row.num_structures, row.added) == (number, size))
                for number in (fewest, most)
            )
            ratio = many.scatter / max(few.scatter, 1e-12)
            name = f"noise of {size:g} eV/A: scatter with {most} structures over that with {fewest}"
            figures.append(Figure(name, ratio, "", limit=1.0))
    return figures, lines
