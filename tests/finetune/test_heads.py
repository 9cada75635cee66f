"""A new level of theory gets a head like an old one, and nothing old changes by a bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.batch import Batch
from evenfield.finetune.heads import with_head


PER_HEAD = ("readout.weight", "readout.element_weight", "e0", "scale")


def forward(potential, structures, level: str | None = None) -> dict[str, torch.Tensor]:
    if level:
        structures = [replace(s, level_of_theory=level) for s in structures]
    levels = potential.config.levels_of_theory
    return potential(
        Batch.join([Batch.from_structure(s, potential.config.cutoff, levels) for s in structures])
    )


def assert_same(one: dict, other: dict) -> None:
    for name in one:
        assert torch.equal(
            torch.nan_to_num(one[name], nan=99.0), torch.nan_to_num(other[name], nan=99.0)
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
