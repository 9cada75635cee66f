"""A tiny float64 potential whose labels other potentials can be asked to find again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from evenfield.data_pipelines.schema import Structure
from evenfield.model_zoo.potential import Potential, PotentialConfig
from evenfield.pretrain.evaluation import Predictions, predict


@pytest.fixture
def potential() -> Potential:
    """Two heads that differ in everything that a head has."""
    config = PotentialConfig(
        channels=8,
        l_max=2,
        num_layers=2,
        readout_size=12,
        radial_hidden=16,
        cutoff=4.0,
        levels_of_theory=["EMT", "EMT-scaled"],
    )
    potential = Potential(config).double().eval()
    with torch.no_grad():
        potential.readout.element_weight.normal_(std=0.05)
        potential.e0.normal_(std=3.0)
        potential.scale.copy_(torch.tensor([1.5, 0.7]))
    return potential


@pytest.fixture(scope="session")
def structures(train_structures: list[Structure]) -> list[Structure]:
    """Crystals of 4 metals, alloys of 7, a cluster and slabs, all of one level of theory."""
    chosen: list[Structure] = []
    for s in train_structures:
        if s.level_of_theory == "EMT" and len(s) <= 4 and sum(s.group == c.group for c in chosen) < 3:
            chosen.append(s)
    return chosen


@pytest.fixture
def labelled_by() -> Callable[[Potential, Sequence[Structure]], list[Structure]]:
    """Structures with a potential's own energies and forces for labels."""

    def label(potential: Potential, structures: Sequence[Structure]) -> list[Structure]:
        return [label_one(potential, s) for s in structures]

    return label


def label_one(potential: Potential, structure: Structure) -> Structure:
    p: Predictions = predict(potential, [structure])
    head = potential.config.levels_of_theory.index(structure.level_of_theory)
    e0 = potential.e0[head, torch.as_tensor(structure.atomic_numbers)].sum().item()
    return replace(structure, energy=float(p.energy[0, 1]) + e0, forces=p.forces[..., 1], stress=None)
