"""The invariance gate and the element table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenfield.model_zoo import BadModelError, Potential, PotentialConfig
from evenfield.model_zoo.element_table import element_vectors, nearest_elements
from evenfield.model_zoo.potential.invariance import check_invariance


ELEMENTS = {"default": ["Na", "Cl", "O", "Fe"]}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_our_potential_passes_with_room(dtype: torch.dtype, bound: float) -> None:
    potential = Potential(PotentialConfig(channels=8)).to(dtype).eval()
    assert check_invariance(potential, ELEMENTS) < bound


class Skewed(Potential):
    """Looks along x: energies and forces depend on the orientation."""

    def edge_vectors(self, batch):
        vectors, tiles = super().edge_vectors(batch)
        return (vectors.detach() * vectors.new_tensor([1.02, 1.0, 1.0])).requires_grad_(), tiles


class Numbered(Potential):
    """Pulls the first atom along z."""

    def forward(self, batch):
        out = super().forward(batch)
        pull = torch.zeros_like(out.forces)
        pull[0, 2] = 0.1 * out.forces.abs().max()
        return out.with_labels(forces=out.forces + pull)


@pytest.mark.parametrize(
    ("kind", "name"), [(Skewed, "rotation"), (Numbered, "rotation|renumbering")]
)
def test_a_model_that_sees_directions_or_numbers_is_refused(
    kind: type[Potential], name: str
) -> None:
    with pytest.raises(BadModelError, match=f"default: predictions change by .* under ({name})"):
        check_invariance(kind(PotentialConfig(channels=8)).eval(), ELEMENTS)


def test_nearest_elements_by_cosine() -> None:
    potential = Potential(PotentialConfig(channels=8))
    weight = potential.backbone.embedding.weight.data
    weight[14], weight[32], weight[8] = torch.randn(3, weight.shape[1])
    weight[32] = 2.0 * weight[14]
    near = nearest_elements(potential, ["Si", "Ge", "O"], count=1)
    assert near["Si"][0][0] == "Ge"
    assert abs(near["Si"][0][1] - 1.0) < 1e-6
    np.testing.assert_array_equal(element_vectors(potential)[14], weight[14].double())
