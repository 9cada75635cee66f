"""Errors of a potential on labelled structures: first predict, then summarise the errors.

`predict` returns `Predictions` (predictions.py), and `summarise` turns them into an `ErrorSummary`
(summary.py). `evaluate` does both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ...core.errors import EvenfieldError
from ...core.labels import LABELS
from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.stream.packing import pack
from ...data_pipelines.structure import Structure
from ..potential.potential import Potential
from .predictions import Predictions
from .summary import ErrorSummary, summarise


ATOM_BUDGET = 4096


class NothingToEvaluateError(EvenfieldError):
    """There are no structures to evaluate."""


@own_modes()
def predict(
    potential: Potential,
    structures: Iterable[Structure],
    *,
    edge_budget: int = 20_000,
    progress: bool = False,
) -> Predictions:
    """Predict all structures, in batches of at most `edge_budget` edges and ATOM_BUDGET atoms.

    The structures keep their order. Raises NothingToEvaluateError if there are none.
    """
    was_training = potential.training
    potential.eval()
    parameter = next(potential.parameters())
    levels = potential.config.levels_of_theory
    graphs = (
        Batch.from_structure(structure, potential.config.cutoff, levels, parameter.dtype)
        for structure in structures
    )
    # a look-ahead of one keeps the order
    packed = pack(graphs, edge_budget, ATOM_BUDGET, look_ahead=1)

    atomic_numbers: list[np.ndarray] = []
    heads: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    pairs: dict[str, list[np.ndarray]] = {}
    for graph_list in track(packed, "evaluating", disable=not progress, transient=True):
        batch = Batch.join(graph_list).to(parameter.device)
        with torch.no_grad():
            prediction = potential(batch)
        atomic_numbers.append(_array(batch.atomic_numbers))
        heads.append(_array(batch.head))
        sizes.append(_array(batch.atoms_per_structure))
        for name, predicted in prediction.labels.items():
            pair = _pair(potential, batch, name, predicted)
            pairs.setdefault(name, []).append(_array(pair.double()))
    potential.train(was_training)
    if not sizes:
        raise NothingToEvaluateError("there are no structures to evaluate")

    num_atoms = np.concatenate(sizes)
    return Predictions(
        atomic_numbers=np.concatenate(atomic_numbers),
        structure_index=np.repeat(np.arange(len(num_atoms)), num_atoms),
        level_index=np.concatenate(heads),
        level_names=list(levels),
        num_atoms=num_atoms,
        # in the order of LABELS, which is also the order of keys in evaluation.json
        pairs={name: np.concatenate(pairs[name]) for name in LABELS if name in pairs},
    )


def _pair(potential: Potential, batch: Batch, name: str, predicted: Tensor) -> Tensor:
    """Stack reference and prediction of a label in the last dimension; energies without E0."""
    reference = batch.labels[name]
    if name == "energy":
        e0_of_atoms = potential.e0[batch.head[batch.structure_index], batch.atomic_numbers]
        e0 = batch.sum_over_atoms(e0_of_atoms)
        reference = reference - e0
        predicted = predicted - e0
    return torch.stack([reference, predicted], dim=-1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def with_a_head(potential: Potential, structures: Iterable[Structure]) -> Iterator[Structure]:
    """The structures whose level of theory has a head in the potential.

    A level that is rare in a data set may have no training structures, and therefore no head.
    """
    levels = potential.config.levels_of_theory
    return (structure for structure in structures if structure.level_of_theory in levels)


def evaluate(
    potential: Potential, structures: Iterable[Structure], split: str, limit: int | None = None
) -> ErrorSummary:
    """Predict at most `limit` structures and summarise the errors.

    `split` is recorded in the summary. Raises NothingToEvaluateError without structures.
    """
    return summarise(predict(potential, islice(structures, limit)), split)
