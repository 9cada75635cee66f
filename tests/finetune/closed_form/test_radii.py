"""Refit of core radii: finds those that made the labels, changes nothing where it cannot help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.finetune.closed_form.radii import refit_radii


HEAD = 0


def squeezed(structures: list) -> list:
    return [replace(s, positions=0.85 * s.positions, cell=0.85 * s.cell) for s in structures]


def with_radii(potential, factors: dict[int, float]):
    other = type(potential)(potential.config).double().eval()
    other.load_state_dict(potential.state_dict())
    with torch.no_grad():
        for z, factor in factors.items():
            other.repulsion.log_factor[HEAD, z] = np.log(factor)
    return other


def test_radii_that_made_the_labels_are_found(potential, structures, labelled_by):
    truth = {29: 1.15, 78: 0.9}
    labelled = labelled_by(with_radii(potential, truth), squeezed(structures))
    weights = {name: value.clone() for name, value in potential.state_dict().items()}
    assert refit_radii(potential, HEAD, labelled)
    fitted = potential.repulsion.log_factor[HEAD].exp()
    for z, factor in truth.items():
        assert fitted[z].item() == pytest.approx(factor, rel=0.03)
    changed = {
        name
        for name, value in potential.state_dict().items()
        if not torch.equal(value, weights[name])
    }
    assert changed == {"repulsion.log_factor"}
    moved = (potential.repulsion.log_factor != 0).nonzero().tolist()
    assert moved == [[HEAD, z] for z in (13, 28, 29, 46, 47, 78, 79)]  # and no other head's


def test_noise_changes_nothing(potential, structures, labelled_by):
    rng = np.random.default_rng(0)
    labelled = [
        s.with_labels(forces=s.forces + rng.normal(0, 0.3, s.forces.shape))
        for s in labelled_by(potential, structures)
    ]
    assert not refit_radii(potential, HEAD, labelled)
    assert (potential.repulsion.log_factor == 0).all()


def test_without_two_structures_with_forces_or_without_repulsion_nothing_happens(
    potential, structures, labelled_by
):
    labelled = labelled_by(with_radii(potential, {29: 1.3}), squeezed(structures))
    assert not refit_radii(potential, HEAD, [s.with_labels(forces=None) for s in labelled])
    assert not refit_radii(potential, HEAD, labelled[:1])
    bare = type(potential)(potential.config.model_copy(update={"repulsion": False})).double().eval()
    assert not refit_radii(bare, HEAD, labelled)
