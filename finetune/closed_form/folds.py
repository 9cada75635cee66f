"""Parts of the data that a refit leaves out in turn: their equations, and rows to judge fits by.

Equations are sums, so their size does not grow with the number of structures. They give the sum of
squared errors over the noise. But a fit is evaluated by absolute errors in the units of the labels,
and should be judged in the same way. That takes rows, so each fold keeps some of them.

Shapes: P unknowns, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .design_rows import DesignRows
from .ridge import NormalEquations


# The labels that are linear in the weights of the energy readout.
ENERGY_LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True)
class KeptRows:
    """Rows of one label that fits are judged by."""

    rows: np.ndarray
    """(R, P) as in the equations: over the noise, times the square root of the weight."""
    targets: np.ndarray
    """(R,) errors before the fit, scaled in the same way."""
    units: np.ndarray
    """(R,) factors that turn an error of a row into a weighted one in the unit of the label."""
    weights: np.ndarray
    """(R,) how much each label counts."""

    @classmethod
    def empty(cls, size: int) -> KeptRows:
        """No rows yet, for `size` unknowns."""
        nothing = np.empty(0)
        return cls(np.empty((0, size)), nothing, nothing, nothing)

    def joined(self, other: KeptRows) -> KeptRows:
        """The rows of both."""
        return KeptRows(
            rows=np.concatenate([self.rows, other.rows]),
            targets=np.concatenate([self.targets, other.targets]),
            units=np.concatenate([self.units, other.units]),
            weights=np.concatenate([self.weights, other.weights]),
        )

    def some(self, kept: np.ndarray) -> KeptRows:
        """The rows where `kept` (R,) is true."""
        return KeptRows(self.rows[kept], self.targets[kept], self.units[kept], self.weights[kept])

    def of_unknowns(self, kept: np.ndarray) -> KeptRows:
        """The rows of the unknowns where `kept` (P,) is true."""
        return KeptRows(self.rows[:, kept], self.targets, self.units, self.weights)

    def absolute_error(self, solutions: np.ndarray) -> np.ndarray:
        """Weighted sums (K,) of absolute errors for solutions (K, P), in the unit of the label."""
        residuals = np.abs(self.targets[:, None] - self.rows @ solutions.T)
        return self.units @ residuals


@dataclass
class Fold:
    """Normal equations of some structures, and rows to judge by; each label has its own noise."""

    equations: dict[str, NormalEquations]
    judging: dict[str, KeptRows]

    @classmethod
    def empty(cls, size: int) -> Fold:
        """Without rows, for `size` unknowns."""
        return cls(
            {name: NormalEquations.empty(size) for name in ENERGY_LABELS},
            {name: KeptRows.empty(size) for name in ENERGY_LABELS},
        )

    def add(self, batch: DesignRows, shares_kept: Mapping[str, float] | None = None) -> None:
        """Add the labels of a batch; rows drawn at random are kept to judge by.

        shares_kept: label -> share of its rows that is kept; by default all of them.
        """
        for name in ENERGY_LABELS:
            rows, targets = batch.rows[name]
            self.equations[name].add(rows, targets)

            kept = np.isfinite(targets)
            share = 1.0 if shares_kept is None else shares_kept[name]
            if share < 1:
                # the same rows whenever the same batch comes
                kept &= np.random.default_rng(len(targets)).random(len(targets)) < share
            all_rows = KeptRows(rows, targets, batch.units[name], batch.weights[name])
            self.judging[name] = self.judging[name].joined(all_rows.some(kept))

    @property
    def all(self) -> NormalEquations:
        """All labels together."""
        return NormalEquations.total(self.equations.values())

    def divided_by_noise(self, noise: dict[str, float]) -> Fold:
        """The equations of each label divided by its noise. The rows that judge do not change."""
        divided = {}
        for name, equations in self.equations.items():
            divided[name] = equations.divided_by_noise(noise[name])
        return Fold(divided, self.judging)

    def of_unknowns(self, kept: np.ndarray) -> Fold:
        """The equations and rows of the unknowns where `kept` (P,) is true."""
        equations = {}
        for name, whole in self.equations.items():
            equations[name] = NormalEquations(
                matrix=whole.matrix[np.ix_(kept, kept)],
                moment=whole.moment[kept],
                square=whole.square,
                rows=whole.rows,
            )
        judging = {name: rows.of_unknowns(kept) for name, rows in self.judging.items()}
        return Fold(equations, judging)
