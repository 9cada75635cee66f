"""Where do errors grow fastest? Scans along directions that the training data do not show.

The features phi of an atom answer to the positions x of all atoms: d phi = J dx. Among all moves
that change the features, two are chosen by the covariance C of the features of the training atoms
of that element: the one along which training data vary least, and the one along which they vary
most. With the singular value decomposition J = U s V^T, without singular values that are next to
zero, every feature change that a move can make is U w, and the smallest move that makes it is

    dx = J^+ U w = V (w / s)

w is the eigenvector of U^T C U with the smallest, or the largest, eigenvalue. Moves in random
directions stand beside them. All are of the same size: the atom that moves farthest moves by as
much as the scan says. The errors are those of the forces against an oracle at the same positions.

A model whose errors grow much faster along the first direction is right because it has seen
something like the structure, and not because it knows the physics around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols

from ..check import CheckedModel, CheckError, CheckResult, Figure, OtherCalculator
from ..sanity.plots import curves_png
from ..sanity.verdicts import with_progress
from .trust import answerable


LEAST = "least variance"
MOST = "most variance"
RANDOM = "random"

STEP = 1e-3  # A, of the differences that give the Jacobian
# Singular values of the Jacobian below this share of the largest are taken for zero: no move makes
# such a change of the features.
SMALLEST_SINGULAR = 1e-2
NUM_RANDOM = 3
NUM_POINTS = 6  # of a scan on each side of the start
MOST_TRAINING = 500  # structures that give the covariance
FEWEST_ATOMS = 10  # of an element, for a covariance


@dataclass(frozen=True)
class Moves:
    """Moves (N, 3) of all atoms, by name; the atom that moves farthest moves by 1."""

    by_name: dict[str, list[np.ndarray]]
    deviations: dict[str, float]
    """Standard deviation of the training atoms along each of the two feature changes."""


def check(
    model: CheckedModel,
    data: Annotated[Path, typer.Argument(help="folder of a converted data set of the model")],
    oracle: Annotated[
        str, typer.Option("--oracle", help="calculator of ASE that labels the scan, as module:name")
    ],
    reach: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="largest move of an atom, A")
    ] = 0.3,
    starts: Annotated[int, typer.Option(min=1, help="test structures that a scan begins with")] = 3,
    most_atoms: Annotated[
        int, typer.Option(min=2, help="larger test structures are not taken")
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="of the random directions")] = 0,
    pictures: Annotated[Path | None, typer.Option(help="folder for linescan.png")] = None,
) -> CheckResult:
    """How fast do force errors grow along directions that the training data do not show?

    The oracle must be of the level of theory that the model answers at. Nothing is judged.

    Example: evenfield check linescan runs/mine/model runs/data --oracle ase.calculators.emt:EMT
    """
    from ...finetune.safety.uncertainty import atom_features

    train, _ = answerable(data, "train", model)
    features, numbers = atom_features(model.loaded.potential, train[:MOST_TRAINING])
    chosen = [one for one in answerable(data, "test", model)[0] if len(one) <= most_atoms]
    if not chosen:
        raise CheckError(
            f"has no test structure with at most {most_atoms} atoms",
            file=data,
            remedy="allow larger ones with --most-atoms",
        )
    every = max(1, len(chosen) // starts)
    beginnings = [structure.to_atoms() for structure in chosen[::every][:starts]]

    calculator = model.calculator("float64")
    other = OtherCalculator(oracle, option="--oracle ").calculator()
    rng = np.random.default_rng(seed)
    amplitudes = np.linspace(-reach, reach, 2 * NUM_POINTS + 1)
    errors: dict[str, list[np.ndarray]] = {LEAST: [], MOST: [], RANDOM: []}
    lines = []
    for atoms in with_progress("line scan", beginnings):
        centre = most_known_atom(atoms, numbers)
        own = features[numbers == atoms.numbers[centre]]
        moves = directions(jacobian(calculator, atoms, centre), np.cov(own.T), rng)
        for name, each in moves.by_name.items():
            errors[name] += [scan(calculator, other, atoms, one, amplitudes) for one in each]
        ratio = moves.deviations[LEAST] / moves.deviations[MOST]
        symbol = chemical_symbols[atoms.numbers[centre]]
        lines.append(
            f"{atoms.get_chemical_formula()}, atom {centre} ({symbol}): training atoms vary "
            f"{ratio:.2g} times as much along the first direction as along the last"
        )
    result = _result(amplitudes, errors, lines)
    if pictures is not None:
        result.write_pictures(pictures)
    return result


def most_known_atom(atoms: Atoms, numbers: np.ndarray) -> int:
    """The atom whose element has the most training atoms. numbers (n,): those of the latter.

    Raises CheckError where too few are known for a covariance.
    """
    counts = [int((numbers == number).sum()) for number in atoms.numbers]
    centre = int(np.argmax(counts))
    if counts[centre] < FEWEST_ATOMS:
        raise CheckError(
            f"no element of {atoms.get_chemical_formula()} has {FEWEST_ATOMS} training atoms",
            remedy="name data with more training structures",
        )
    return centre


def jacobian(calculator: Calculator, atoms: Atoms, centre: int) -> np.ndarray:
    """Derivatives (d, 3 N) of the features of one atom by all positions, by central differences."""
    columns = []
    for atom, axis in np.ndindex(len(atoms), 3):
        moved = []
        for sign in (1, -1):
            copy = atoms.copy()
            copy.positions[atom, axis] += sign * STEP
            moved.append(calculator.get_features(copy)[centre])  # type: ignore[attr-defined]
        columns.append((moved[0] - moved[1]) / (2 * STEP))
    return np.array(columns, dtype=float).T


def directions(slopes: np.ndarray, covariance: np.ndarray, rng: np.random.Generator) -> Moves:
    """Moves along which training data vary least and most, and random ones.

    slopes (d, 3 N): the Jacobian. covariance (d, d): of the features of training atoms.
    """
    left, singular, right = np.linalg.svd(slopes, full_matrices=False)
    kept = singular > SMALLEST_SINGULAR * singular[0]
    left = left[:, kept]
    # ascending, so that the first is the least
    variances, axes = np.linalg.eigh(left.T @ covariance @ left)

    def smallest_move(axis: np.ndarray) -> np.ndarray:
        return _of_size_one((right[kept].T @ (axis / singular[kept])).reshape(-1, 3))

    shape = (slopes.shape[1] // 3, 3)
    by_name = {
        LEAST: [smallest_move(axes[:, 0])],
        MOST: [smallest_move(axes[:, -1])],
        RANDOM: [_of_size_one(rng.normal(size=shape)) for _ in range(NUM_RANDOM)],
    }
    deviations = np.sqrt(np.maximum(variances, 0.0))
    return Moves(by_name, {LEAST: float(deviations[0]), MOST: float(deviations[-1])})


def _of_size_one(moves: np.ndarray) -> np.ndarray:
    return moves / np.linalg.norm(moves, axis=1).max()


def scan(
    calculator: Calculator,
    other: Calculator,
    atoms: Atoms,
    moves: np.ndarray,
    amplitudes: np.ndarray,
) -> np.ndarray:
    """Errors of the forces (A,) in eV/A, as root mean squares of components, along moves (N, 3)."""
    errors = []
    for amplitude in amplitudes:
        moved = atoms.copy()
        moved.positions += amplitude * moves
        difference = calculator.get_forces(moved) - other.get_forces(moved)
        errors.append(np.sqrt(np.mean(np.square(difference))))
    return np.array(errors)


def _result(
    amplitudes: np.ndarray, errors: dict[str, list[np.ndarray]], lines: list[str]
) -> CheckResult:
    """Errors at the start and at the ends, and how much faster they grow where data vary least."""
    means = {name: np.sqrt(np.mean(np.square(scans), axis=0)) for name, scans in errors.items()}
    middle = len(amplitudes) // 2
    at_start = float(means[LEAST][middle])
    figures = [Figure("force error at the start (RMSE)", at_start, "eV/A")]
    growth = {}
    lines = [*lines, f"force error at the start: {at_start:.3g} eV/A (RMSE)"]
    for name in (LEAST, RANDOM, MOST):
        at_ends = float(np.mean(means[name][[0, -1]]))
        growth[name] = (at_ends - at_start) / float(amplitudes[-1])
        figures += [
            Figure(f"force error at the ends, {name}", at_ends, "eV/A"),
            Figure(f"growth of the force error, {name}", growth[name], "eV/A^2"),
        ]
        lines.append(
            f"{name}: {at_ends:.3g} eV/A at moves of {amplitudes[-1]:g} A, which is a growth of "
            f"{growth[name]:.3g} eV/A^2"
        )
    if growth[RANDOM] > 0:
        ratio = growth[LEAST] / growth[RANDOM]
        figures.append(Figure("growth, least variance over random", ratio, ""))
    return CheckResult(figures, lines, pictures={"linescan.png": _picture(amplitudes, means)})


def _picture(amplitudes: np.ndarray, means: dict[str, np.ndarray]) -> bytes:
    """Errors over the move of the atom that moves farthest."""
    largest = max(float(errors.max()) for errors in means.values())
    return curves_png(
        "Force errors along moves of the atoms",
        "largest move of an atom (A)",
        "force error (RMSE, eV/A)",
        {name: (amplitudes, means[name]) for name in (LEAST, RANDOM, MOST)},
        y_range=(0.0, 1.05 * largest),
    )
