"""A new level of theory gets a head like an old one, and nothing old changes by a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.batch import Batch
from evenfield.finetune.heads import with_head
from evenfield.model_zoo.potential.prediction import Prediction


PER_HEAD = ("readout.weight", "readout.element_weight", "e0", "scale")


def forward(potential, structures, level: str | None = None) -> Prediction:
    if level:
        structures = [replace(s, level_of_theory=level) for s in structures]
    levels = potential.config.levels_of_theory
    return potential(Batch.from_structures(structures, potential.config.cutoff, levels))


def assert_same(one: Prediction, other: Prediction) -> None:
    for name, expected in one.labels.items():
        assert torch.equal(
            torch.nan_to_num(expected, nan=99.0), torch.nan_to_num(other.labels[name], nan=99.0)
        ), name


@pytest.mark.parametrize(
    ("like", "source"), [(None, "EMT"), ("EMT", "EMT"), ("EMT-scaled", "EMT-scaled")]
)
def test_new_head_predicts_as_the_one_that_it_is_like(potential, structures, like, source):
    new = with_head(potential, "PBE", like)
    assert new.config.levels_of_theory == ["EMT", "EMT-scaled", "PBE"]
    assert_same(forward(new, structures[:4], "PBE"), forward(potential, structures[:4], source))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_old_heads_predict_the_same_bits(potential, structures, dtype):
    potential = potential.to(dtype)
    new = with_head(potential, "PBE")
    for level in potential.config.levels_of_theory:
        assert_same(forward(new, structures[:4], level), forward(potential, structures[:4], level))
    assert next(new.parameters()).dtype == dtype and not new.training


def test_changing_the_new_head_changes_neither_old_heads_nor_the_old_potential(
    potential, structures
):
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    new = with_head(potential, "PBE")
    with torch.no_grad():
        for name in PER_HEAD:
            new.state_dict()[name][2] += 1.0
    assert_same(forward(new, structures[:2], "EMT"), forward(potential, structures[:2], "EMT"))
    assert all(torch.equal(before[name], value) for name, value in potential.state_dict().items())


def test_known_level_keeps_its_own_head(potential):
    copy = with_head(potential, "EMT-scaled")
    assert copy.config == potential.config
    assert all(
        torch.equal(value, potential.state_dict()[name])
        for name, value in copy.state_dict().items()
    )
    copy.e0.data += 1  # it is a copy
    assert not torch.equal(copy.e0, potential.e0)


def test_unknown_model_head_is_refused(potential):
    with pytest.raises(
        EvenfieldError,
        match="'PBE0' is not a level of theory of the model: name one of EMT, EMT-scaled",
    ):
        with_head(potential, "PBE", like="PBE0")
