"""Measurements during a run: errors on the validation split, and the learned noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...core.rich_console import Console
from ...data_pipelines.store.blocks import BlockReader
from ...data_pipelines.stream.collection import Collection
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import evaluate
from ...model_zoo.evaluation.summary import ErrorSummary
from ...model_zoo.potential.potential import Potential
from ..loop.noise import NoiseScales
from .callback import Callback, Loop, StepReport


class Validation(Callback):
    """Evaluates validation structures every `every` steps, and reports and prints the errors.

    Only rank 0 has this callback. The other ranks wait at their next collective operation.
    """

    def __init__(
        self, potential: Potential, structures: list[Structure], console: Console, every: int
    ) -> None:
        """`structures` are used at every validation; see `spread_structures`."""
        self.potential = potential
        self.structures = structures
        self.console = console
        self.every = every

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every:
            return
        # these are the averaged weights, if there are any, because they will be exported
        with loop.evaluated_weights():
            summary = evaluate(self.potential, self.structures, "valid")
        # make sure that the potential is in training mode again
        self.potential.train()
        report.evaluation = summary
        self.console.print(f"step {report.step}: valid " + ", ".join(_figures(summary)))


def spread_structures(
    data: Collection, split: str, levels_of_theory: list[str], limit: int
) -> list[Structure]:
    """At most `limit` structures of a split, spread over data sets and levels of theory.

    Each level of each data set contributes the same number, if it has enough structures. They are
    evenly spaced, and in the order of the files. Structures at other levels are left out.
    """
    stocks: list[_Stock] = []
    for folder in data.folders_with(split):
        stocks += _stocks(BlockReader(folder, split), levels_of_theory)

    # rows by block, so that every block is decoded only once
    chosen: dict[BlockReader, dict[int, list[int]]] = {stock.reader: {} for stock in stocks}
    shares = equal_shares([len(stock.places) for stock in stocks], limit)
    for stock, number in zip(stocks, shares, strict=True):
        spaced = np.arange(number) * len(stock.places) // max(1, number)
        for block, row in stock.places[spaced].tolist():
            chosen[stock.reader].setdefault(block, []).append(row)

    structures = []
    for reader, blocks in chosen.items():
        for block in sorted(blocks):
            decoded = reader.block(block)
            for row in sorted(blocks[block]):
                structures.append(_copied(decoded.structure(row)))
    return structures


@dataclass(frozen=True)
class _Stock:
    """The structures of one level of theory in one data set.

    `places` (n, 2) holds block and row of each structure.
    """

    reader: BlockReader
    places: np.ndarray


def _stocks(reader: BlockReader, levels_of_theory: list[str]) -> list[_Stock]:
    """One stock for each of the levels that the data set contains."""
    places: dict[str, list[np.ndarray]] = {}
    for block in range(len(reader)):
        # reading a single column is fast even for millions of structures
        table = reader.table(block, ["level_of_theory"])
        names = table["level_of_theory"].to_numpy()
        for level in levels_of_theory:
            rows = np.flatnonzero(names == level)
            if len(rows):
                own = np.column_stack([np.full_like(rows, block), rows])
                places.setdefault(level, []).append(own)
    return [_Stock(reader, np.concatenate(parts)) for parts in places.values()]


def equal_shares(sizes: list[int], total: int) -> list[int]:
    """How many items to take from each stock: `total` in all, as equally as sizes allow.

    >>> equal_shares([100, 2, 50], 20)
    [9, 2, 9]
    """
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    # the smallest first, so that what they lack is taken from the others
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for position, index in enumerate(order):
        shares[index] = min(sizes[index], left // (len(order) - position))
        left -= shares[index]
    return shares


def _copied(structure: Structure) -> Structure:
    """A copy without views into its block, which would keep the whole block in memory."""
    labels = {}
    for name, value in structure.labels.items():
        labels[name] = value.copy() if isinstance(value, np.ndarray) else value
    return replace(
        structure,
        atomic_numbers=structure.atomic_numbers.copy(),
        positions=structure.positions.copy(),
        cell=structure.cell.copy(),
        pbc=structure.pbc.copy(),
        labels=labels,
    )


class LearnedNoise(Callback):
    """Adds the learned noise to the report every `every` steps and at the last step."""

    def __init__(self, noise: NoiseScales, every: int) -> None:
        self.noise = noise
        self.every = every

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every == 0 or report.step == loop.max_steps:
            report.noise = self.noise.table()


def _figures(summary: ErrorSummary) -> list[str]:
    """The errors as text, for labels that the validation split has."""
    figures = []
    if summary.energy_mae_per_atom is not None:
        figures.append(f"energy MAE {1000 * summary.energy_mae_per_atom:.1f} meV/atom")
    if summary.force_mae is not None:
        figures.append(
            f"force MAE {summary.force_mae:.3f} eV/A (RMS of the labels {summary.force_rms:.3f})"
        )
        figures.append(
            f"worst element {summary.worst_element} {summary.worst_element_force_mae:.3f}"
        )
    return figures
