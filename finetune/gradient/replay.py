"""Replay: structures of before among the new ones, so that a gradient strategy forgets less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from ...core.settings import Settings
from ...data_pipelines.store.blocks import iter_structures
from ...data_pipelines.structure import Structure
from ...model_zoo.evaluation.evaluation import predict
from ...model_zoo.potential.potential import Potential


PROBE_SAMPLES = 100  # of a data set, in the probe set


class ReplayConfig(Settings):
    """Structures of before that a gradient strategy sees again, so that it forgets less."""

    data: str | None = Field(
        default=None, description="folder of a converted data set: the pretraining data, or any"
    )
    share: float = Field(default=0.5, gt=0, lt=1, description="of the batches")
    own_labels: bool = Field(
        default=False, description="labels by the model as it was, instead of the data's own"
    )
    num_structures: int = Field(default=3000, gt=0, description="most structures taken")


def draw_probe(data: Path | str) -> list[Structure]:
    """The training structures of a data set that its probe set holds (forgetting.py)."""
    return _shuffled(data)[:PROBE_SAMPLES]


def draw_for_replay(data: Path | str, num_structures: int, seed: int) -> list[Structure]:
    """At most so many training structures, by seed; none of the probe set unless the data set is small.

    The probe is to tell what became of structures that are not seen again.
    """
    structures = _shuffled(data)
    rest = structures[PROBE_SAMPLES:] if len(structures) >= 2 * PROBE_SAMPLES else structures
    return [rest[k] for k in np.random.default_rng(seed).permutation(len(rest))[:num_structures]]


def _shuffled(data: Path | str) -> list[Structure]:
    structures = list(iter_structures(data, "train"))
    return [structures[k] for k in np.random.default_rng(0).permutation(len(structures))]


def labelled_by(potential: Potential, structures: Sequence[Structure]) -> list[Structure]:
    """Structures with a potential's own energies, forces and stress of their level of theory for labels."""
    if not structures:
        return []
    p = predict(potential, structures)
    levels, ends = potential.config.levels_of_theory, np.cumsum(p.num_atoms)
    labelled = []
    for k, (s, forces) in enumerate(
        zip(structures, np.split(p.forces[..., 1], ends[:-1]), strict=True)
    ):
        numbers = torch.as_tensor(np.asarray(s.atomic_numbers, dtype=np.int64))
        energy = float(p.energy[k, 1]) + float(
            potential.e0[levels.index(s.level_of_theory), numbers].sum()
        )
        stress = p.stress[k, ..., 1]
        known = stress if np.isfinite(stress).all() else None
        labelled.append(s.with_labels(energy=energy, forces=forces, stress=known))
    return labelled
