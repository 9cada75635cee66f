"""What is measured during a run: errors on the validation split, and the noise that is learned."""

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
    """Errors on validation structures every `every` steps, into the report and onto the screen.

    Rank 0 holds it; the others wait at their next collective operation.
    """

    def __init__(
        self, potential: Potential, structures: list[Structure], console: Console, every: int
    ) -> None:
        """`structures` are those of `spread_structures`, the same at every validation."""
        self.potential = potential
        self.structures = structures
        self.console = console
        self.every = every

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every:
            return
        # an average of the weights, if there is one: that is what will be exported
        with loop.evaluated_weights():
            summary = evaluate(self.potential, self.structures, "valid")
        # the evaluation has switched it off
        self.potential.train()
        report.evaluation = summary
        self.console.print(f"step {report.step}: valid " + ", ".join(_figures(summary)))


def spread_structures(
    data: Collection, split: str, levels_of_theory: list[str], limit: int
) -> list[Structure]:
    """At most `limit` structures of a split, spread over data sets and levels of theory.

    Each level of each data set gives equally many if it has as many, evenly spaced in its files.
    The order is that of the files. Structures of other levels are left out.
    """
    stocks: list[_Stock] = []
    for folder in data.folders_with(split):
        stocks += _stocks(BlockReader(folder, split), levels_of_theory)

    # rows of each block: a block is decoded once, whatever levels it has
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
    """The structures of one level of theory in one data set, (n, 2): block and row of each."""

    reader: BlockReader
    places: np.ndarray


def _stocks(reader: BlockReader, levels_of_theory: list[str]) -> list[_Stock]:
    """One for each of the levels that the data set has."""
    places: dict[str, list[np.ndarray]] = {}
    for block in range(len(reader)):
        # one column, which takes little time even for millions of structures
        table = reader.table(block, ["level_of_theory"])
        names = table["level_of_theory"].to_numpy()
        for level in levels_of_theory:
            rows = np.flatnonzero(names == level)
            if len(rows):
                own = np.column_stack([np.full_like(rows, block), rows])
                places.setdefault(level, []).append(own)
    return [_Stock(reader, np.concatenate(parts)) for parts in places.values()]


def equal_shares(sizes: list[int], total: int) -> list[int]:
    """How many to take of each of several stocks, equally many where they last; `total` in all.

    >>> equal_shares([100, 2, 50], 20)
    [9, 2, 9]
    """
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    # the smallest first: what they lack goes to the others
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for position, index in enumerate(order):
        shares[index] = min(sizes[index], left // (len(order) - position))
        left -= shares[index]
    return shares


def _copied(structure: Structure) -> Structure:
    """Without views into its block, which would stay in memory as a whole."""
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
    """Adds the learned noise to the report, every `every` steps and at the last one."""

    def __init__(self, noise: NoiseScales, every: int) -> None:
        self.noise = noise
        self.every = every

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every == 0 or report.step == loop.max_steps:
            report.noise = self.noise.table()


def _figures(summary: ErrorSummary) -> list[str]:
    """The errors of the labels that the validation split has, as text."""
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
