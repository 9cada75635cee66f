"""SOAP: AdamW in the identity basis, independent matrices, faster where axes are skew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.pretrain.loop import soap
from evenfield.pretrain.loop.optimizer import OptimizerConfig, new_optimizer, parameter_groups
from evenfield.pretrain.loop.soap import REFRESH, Soap


SHAPES = (
    # three of one shape, which are stepped as one stack
    (3, 8, 8),
    (2, 8, 8),
    (8, 8),
    # tall enough to be cut into blocks
    (64, 32),
    (5, 8),
    (8, 40),
)


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        # columns of different sizes: a basis that did nothing would be seen
        scale = 1 + torch.arange(parameter.shape[-1])
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


def matrices(parameters: list[nn.Parameter], weight_decay: float = 0.0) -> list[dict]:
    return [{"params": parameters, "matrices": True, "weight_decay": weight_decay}]


def test_it_is_torchs_adamw_before_the_first_look_at_the_eigenvectors(monkeypatch):
    # torch's has no such floor
    monkeypatch.setattr(soap, "FLOOR", 0.0)
    ours, theirs = weights(), weights()
    optimizer = Soap(matrices(ours, weight_decay=0.1), lr=0.01)
    reference = torch.optim.AdamW(
        theirs, lr=0.01, betas=(soap.BETA, soap.BETA), eps=soap.EPS, weight_decay=0.1
    )
    for step in range(soap.REFRESH):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for own, expected, start in zip(ours, theirs, weights(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
        assert (own - start).abs().median() > 1e-3


def test_what_is_no_matrix_is_stepped_by_torchs_adamw():
    ours, theirs = weights(), weights()
    optimizer = Soap([{"params": ours, "weight_decay": 0.1}], lr=0.01)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, fused=True)
    for step in range(3 * soap.REFRESH):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    assert all(torch.equal(own, expected) for own, expected in zip(ours, theirs, strict=True))


def test_matrices_of_one_stack_do_not_see_each_other():
    together, alone = weights(), weights()
    one = Soap(matrices(together), lr=0.01)
    each = [Soap(matrices([p]), lr=0.01) for p in alone]
    for step in range(3 * soap.REFRESH + 1):
        give_gradients(together, step)
        give_gradients(alone, step)
        one.step()
        for optimizer in each:
            optimizer.step()
    for own, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_basis_goes_to_the_eigenvectors_of_the_mean_gradient_products():
    """Orthogonal iteration: P^T L P becomes diagonal, and P stays orthogonal."""
    parameter = nn.Parameter(torch.zeros(1, 6, 6))
    optimizer = Soap(matrices([parameter]), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    skew, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    # gradients of one covariance, whose axes are skew and of different lengths
    root = skew * 2.0 ** torch.arange(6)
    for _ in range(100 * soap.REFRESH):
        gradient = root @ torch.randn(6, 6, generator=generator)
        parameter.grad = gradient.unsqueeze(0)
        optimizer.step()
    basis = optimizer.state[parameter]["left_basis"][0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), rtol=0, atol=1e-5)
    # the iteration puts the largest axis first, and leaves the sign open
    overlap = (basis.T @ skew.flip(1)).abs()
    assert overlap.diagonal().min() > 0.9


def skew_loss(weight: Tensor) -> Tensor:
    """A bowl whose axes mix rows and columns, which steps entry by entry cannot see."""
    generator = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    scale = 10.0 ** torch.linspace(-1.5, 1.5, 16)
    target = torch.randn(16, 16, generator=generator)
    turned = left @ (weight - target) @ right
    return ((scale[:, None] * turned) * scale).square().mean()


@pytest.mark.parametrize("learning_rate", [0.01, 0.03])
def test_it_descends_a_skew_bowl_that_adamw_does_not(learning_rate):
    last = {}
    for name in ("soap", "adamw"):
        weight = nn.Parameter(torch.zeros(16, 16))
        if name == "soap":
            optimizer: torch.optim.Optimizer = Soap(matrices([weight]), lr=learning_rate)
        else:
            optimizer = torch.optim.AdamW(
                [weight], lr=learning_rate, betas=(0.95, 0.95), weight_decay=0.0
            )
        for _ in range(1000):
            optimizer.zero_grad()
            loss = skew_loss(weight)
            loss.backward()
            optimizer.step()
        last[name] = float(loss.detach())
    assert last["soap"] < 0.1 * last["adamw"]


def test_radii_of_elements_that_a_level_lacks_stay_where_they_are():
    """Stepped as one matrix of levels and elements, they moved with those of other levels.

    Some reached e^90 times their start, which made every later gradient NaN.
    """
    potential = Potential(PotentialConfig(channels=4, levels_of_theory=["first", "second"]))
    config = OptimizerConfig()
    optimizer = new_optimizer(parameter_groups(potential, config), config)
    radii = potential.repulsion.log_factor
    generator = torch.Generator().manual_seed(0)
    known = torch.zeros_like(radii, dtype=torch.bool)
    known[0, [1, 8]] = True
    known[1, [8, 79]] = True

    for parameter in potential.parameters():
        parameter.grad = torch.zeros_like(parameter)

    for _ in range(3 * REFRESH):
        radii.grad = torch.where(known, torch.randn(radii.shape, generator=generator), 0.0)
        optimizer.step()
    assert (radii[known] != 0).all()
    assert (radii[~known] == 0).all()
