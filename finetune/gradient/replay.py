"""Replay: train on earlier structures among the new ones, so that less is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from ...core.errors import EvenfieldError
from ...core.labels import LABELS, present
from ...core.level_names import spelt_alike
from ...core.settings import Settings
from ...data_pipelines.physics.residual import as_learned
from ...data_pipelines.store.blocks import iter_structures
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict, with_a_head
from ...model_zoo.potential.potential import Potential


# Number of structures in the probe set of a data set.
PROBE_SAMPLES = 100


class ReplayConfig(Settings):
    """Earlier structures on which a gradient strategy also trains, so that it forgets less."""

    data: str | None = Field(
        default=None,
        description="folder of a converted data set, the pretraining data for example",
    )
    share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of the structures of a batch that come from `data`",
    )
    own_labels: bool = Field(
        default=False,
        description="replace the labels of `data` by predictions of the pretrained model",
    )
    num_structures: int = Field(
        default=3000, gt=0, description="most structures to take from `data`"
    )


@dataclass(frozen=True)
class Replay:
    """Structures that are replayed, and their share of each batch."""

    structures: list[Structure]
    share: float


def replay_structures(pretrained: Potential, config: ReplayConfig, seed: int) -> Replay | None:
    """The structures to replay; None if `config` names no data.

    Raises EvenfieldError if no structure has a level of theory of the pretrained model, or if a
    level is one of the model's in another spelling.
    """
    if config.data is None:
        return None
    drawn = draw_for_replay(config.data, config.num_structures, seed)
    _refuse_other_spelling(pretrained, drawn, config.data)
    known = with_a_head(pretrained, drawn)
    structures = list(as_learned(known, config.data, pretrained.config.physics))
    if not structures:
        levels = ", ".join(pretrained.config.levels_of_theory)
        raise EvenfieldError(
            f"replay.data has no structure at a level of theory of the model ({levels})",
            remedy="name another data set",
            file=config.data,
        )
    if config.own_labels:
        structures = labelled_by(pretrained, structures)
    return Replay(structures, config.share)


def _refuse_other_spelling(
    pretrained: Potential, structures: Sequence[Structure], data: str
) -> None:
    """Raise EvenfieldError if a level of the structures is one of the model's, spelt differently.

    Otherwise these structures would be left out silently, like those of unknown levels.
    """
    levels = pretrained.config.levels_of_theory
    for level in sorted({structure.level_of_theory for structure in structures} - set(levels)):
        other = spelt_alike(level, levels)
        if other is not None:
            raise EvenfieldError(
                f"replay.data has the level of theory {level!r}, which the model spells {other!r}",
                remedy=f"convert it again with level_of_theory={other!r}",
                file=data,
            )


def draw_probe(data: Path | str) -> list[Structure]:
    """The training structures of a data set that form its probe set (safety/forgetting.py)."""
    return _shuffled(data)[:PROBE_SAMPLES]


def draw_for_replay(data: Path | str, num_structures: int, seed: int) -> list[Structure]:
    """At most `num_structures` training structures, drawn at random with `seed`.

    Unless the data set is small, none of them is in its probe set, because the probe must show what
    happens to structures that are not replayed.
    """
    structures = _shuffled(data)
    if len(structures) >= 2 * PROBE_SAMPLES:
        structures = structures[PROBE_SAMPLES:]

    order = np.random.default_rng(seed).permutation(len(structures))
    return [structures[index] for index in order[:num_structures]]


def _shuffled(data: Path | str) -> list[Structure]:
    """All training structures in one fixed random order, which defines the probe set."""
    structures = list(iter_structures(data, "train"))
    order = np.random.default_rng(0).permutation(len(structures))
    return [structures[index] for index in order]


def labelled_by(potential: Potential, structures: Sequence[Structure]) -> list[Structure]:
    """Copies of the structures with labels predicted by `potential` at their own level of theory.

    A label that the potential does not predict for a structure, such as the stress of a molecule,
    is absent.
    """
    if not structures:
        return []
    predicted = predict(potential, structures)
    ends = np.cumsum(predicted.num_atoms)[:-1]
    labels: list[dict[str, Any]] = [{} for _ in structures]
    for name, pairs in predicted.pairs.items():
        values = pairs[..., 1]  # the predictions in pairs of label and prediction
        is_of_atoms = LABELS[name].per == "atom"
        of_structures = np.split(values, ends) if is_of_atoms else list(values)
        for structure_labels, value in zip(labels, of_structures, strict=True):
            structure_labels[name] = value if np.isfinite(value).all() else None

    labelled = []
    for structure, own in zip(structures, labels, strict=True):
        # `predict` gives energies without E0
        own["energy"] = float(own["energy"]) + _sum_of_e0(potential, structure)
        labelled.append(replace(structure, labels=present(own)))
    return labelled


def _sum_of_e0(potential: Potential, structure: Structure) -> float:
    """Sum of the reference energies of all atoms at the structure's level of theory, in eV."""
    head = potential.config.levels_of_theory.index(structure.level_of_theory)
    numbers = torch.as_tensor(np.asarray(structure.atomic_numbers, dtype=np.int64))
    return float(potential.e0[head, numbers].sum())
