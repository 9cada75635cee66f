"""Tables that follow similar elements: the similarities, the gradients, and a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ase.data import atomic_numbers, chemical_symbols

from evenfield.model_zoo.hub.load import load
from evenfield.model_zoo.network.embedding import element_descriptors
from evenfield.pretrain import run
from evenfield.pretrain.loop.element_sharing import (
    ElementSharingConfig,
    share_elements,
    similarities,
)
from evenfield.pretrain.loop.loss import LossConfig, label_counts
from evenfield.pretrain.loop.train_module import TrainModule

from optimizer_steps import batch_of, new_potential


NEVER_SEEN = 79  # gold


def table_gradients(structures, strength: float, width: float = 0.3) -> list[torch.Tensor]:
    """Gradients of the element vectors and of the element weights of the readout."""
    potential = new_potential()
    share_elements(potential, ElementSharingConfig(strength=strength, width=width))
    train_module = TrainModule(potential, LossConfig())
    batch = batch_of(structures)
    train_module(batch, lambda: label_counts(batch)).backward()
    return [potential.backbone.element_vectors.grad, potential.readout.element_weight.grad]


def test_similar_elements_are_chemical_relatives() -> None:
    kernel = similarities(0.3)
    nearest = {"Na": "K", "Fe": "Co", "La": "Ce", "Zr": "Nb", "Au": "Pt"}
    for symbol, relative in nearest.items():
        assert chemical_symbols[int(kernel[atomic_numbers[symbol]].argmax())] == relative


def test_similarity_by_hand() -> None:
    kernel = similarities(0.5)
    descriptors = element_descriptors()
    squared = ((descriptors[11] - descriptors[19]) ** 2).mean()
    assert float(kernel[11, 19]) == pytest.approx(float(torch.exp(torch.tensor(-squared / 0.5))))
    assert torch.equal(kernel, kernel.T)
    assert not kernel.diagonal().any()
    assert not kernel[0].any()


def test_gradients_of_similar_elements_are_added(train_structures) -> None:
    structures = train_structures[:3]
    kernel = similarities(0.3)
    own_gradients = table_gradients(structures, 0.0)
    for own, shared in zip(own_gradients, table_gradients(structures, 0.5), strict=True):
        assert own.any()
        added = torch.einsum("zy,...yd->...zd", kernel, own)
        assert torch.allclose(shared, own + 0.5 * added, rtol=1e-4, atol=1e-7)


def test_an_element_that_is_not_in_the_batch_follows_its_relatives(train_structures) -> None:
    structures = [s for s in train_structures if NEVER_SEEN not in s.atomic_numbers][:3]
    own, _ = table_gradients(structures, 0.0)
    shared, _ = table_gradients(structures, 1.0)
    assert not own[NEVER_SEEN].any()
    assert shared[NEVER_SEEN].any()


def test_a_run_with_sharing_is_stored_like_any_other(run_config) -> None:
    """The model folder has the same tensors and settings, with other values."""
    plain = run.pretrain(run_config("plain"), quiet=True)
    shared = run.pretrain(run_config("shared", element_sharing={"strength": 1.0}), quiet=True)
    first, second = (load(Path(folder)).potential for folder in (plain, shared))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert first.config == second.config
    before, after = (one.backbone.element_vectors for one in (first, second))
    assert not torch.equal(before, after)
