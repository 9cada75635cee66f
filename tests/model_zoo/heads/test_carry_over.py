"""Heads after a change of weights stay where their features did not change, and only there."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers

from evenfield import model_zoo
from evenfield.finetune.closed_form.widen import widened
from evenfield.model_zoo.heads.carry_over import heads_carried_over
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.heads.record import HEADS, heads_file
from evenfield.model_zoo.hub.load import LoadedModel

from labelled_molecules import (
    molecular_model,
    molecules,
    of_its_own_network,
    planted_head,
    rotating_head,
)


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return model_zoo.load(molecular_model(tmp_path / "model", l_max=2))


@pytest.fixture
def heads(model: LoadedModel) -> dict[str, Head]:
    """One for each kind of features, and one with a network of its own."""
    size = model.potential.backbone.num_features
    made = [
        planted_head("charges", size, name="network"),
        planted_head("scalar", 8, name="readout", unit="A^3", features="readout"),
        rotating_head("vector", model.potential, name="equivariant"),
        of_its_own_network(rotating_head("tensor", model.potential, name="own"), model.potential),
    ]
    return {head.description.name: head for head in made}


def test_what_follows_the_features_changes_no_head(model, heads, tmp_path: Path) -> None:
    """New last weights, E0 and scale, and rows appended to the readout: the answers stay."""
    before = model.potential
    after = widened(before, 5, seed=3)
    with torch.no_grad():
        after.readout.weight.normal_()
        after.readout.element_weight.normal_()
        after.repulsion.log_factor.normal_()
        after.e0.normal_()
    kept = heads_carried_over(heads, before, after)
    assert list(kept) == list(heads)

    first = _loaded(model, before, heads, tmp_path / "before")
    second = _loaded(model, after, kept, tmp_path / "after")
    largest: dict[str, float] = {}
    for atoms in molecules(copies=1):
        for name in heads:
            one, other = first.predict(atoms, name), second.predict(atoms, name)
            np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-14)
            largest[name] = max(largest.get(name, 0.0), np.abs(one).max())
    assert min(largest.values()) > 1e-3


def test_other_features_leave_heads_behind(model, heads) -> None:
    def names(change) -> set[str]:
        after = copy.deepcopy(model.potential)
        with torch.no_grad():
            change(after)
        return set(heads_carried_over(heads, model.potential, after))

    def hidden(potential) -> None:
        potential.readout.hidden.bias[0] += 1e-6

    def network(potential) -> None:
        last = list(potential.backbone.parameters())[-1]
        last.view(-1)[0] += 1e-6

    def element(symbol: str):
        def change(potential) -> None:
            potential.backbone.element_vectors[atomic_numbers[symbol], 0] += 1e-6

        return change

    assert names(lambda _: None) == set(heads)
    assert names(hidden) == {"network", "equivariant", "own"}
    assert names(network) == {"own"}
    # the heads have seen H, C, N and O
    assert names(element("N")) == {"own"}
    assert names(element("Pt")) == set(heads)


def _loaded(model: LoadedModel, potential, heads: dict[str, Head], at: Path) -> LoadedModel:
    file = {HEADS: heads_file(potential, heads)}
    return model_zoo.load(model_zoo.save_model(at, potential, model.record, attachments=file))
