"""The algebra against what e3nn and closed forms say."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from evenfield.model_zoo.network.gaunt.algebra import (
    ClebschGordanContraction,
    EquivariantLinear,
    GauntTensorProduct,
)


def representation(rotation: torch.Tensor, l_max: int) -> torch.Tensor:
    """Matrix of a rotation on the components of l = 0..l_max, by turning harmonics at many points.

    e3nn's own D_from_matrix goes through Euler angles and is exact to 1e-7 only.
    """
    points = torch.randn(200, 3, dtype=torch.float64)
    degrees = list(range(l_max + 1))
    plain = o3.spherical_harmonics(degrees, points, True, "component")
    turned = o3.spherical_harmonics(degrees, points @ rotation.T, True, "component")
    return torch.linalg.lstsq(plain, turned).solution.T


def by_degree(a: torch.Tensor, l_in: int) -> list[torch.Tensor]:
    """A (K2, K1, N, C) -> its parts by l1, (K2 * (2 l1 + 1), N, C)."""
    return [a[:, l1**2 : (l1 + 1) ** 2].flatten(0, 1) for l1 in range(l_in + 1)]


def turn(d: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ab,bnc->anc", d, x)


@pytest.mark.parametrize(
    ("l_max", "l_out"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (3, 1), (1, 0), (3, 0)]
)
def test_sphere_product_is_the_gaunt_product(l_max: int, l_out: int) -> None:
    """It equals e3nn's Clebsch-Gordan coefficients times the Gaunt factor, path by path."""
    product = GauntTensorProduct(l_max, l_out).double()
    size = (l_max + 1) ** 2
    a, b = torch.randn(2, size, 3, 2, dtype=torch.float64)
    expected = torch.zeros(size, 3, 2, dtype=torch.float64)
    for l1 in range(l_max + 1):
        for l2 in range(l_max + 1):
            for l3 in range(abs(l1 - l2), min(l_max, l1 + l2) + 1):
                # with |Y_l|^2 = 2l + 1:
                # <Y3, Y1 Y2> = sqrt((2l1+1)(2l2+1)(2l3+1)) w3j(0,0,0) w3j(m1,m2,m3)
                polar = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
                at_pole = [
                    o3.spherical_harmonics(k, polar, True, "component") for k in (l1, l2, l3)
                ]
                wigner = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
                factor = torch.einsum("a,b,c,abc->", *at_pole, wigner)
                part = torch.einsum(
                    "abc,anx,bnx->cnx", wigner, a[l1**2 : (l1 + 1) ** 2], b[l2**2 : (l2 + 1) ** 2]
                )
                expected[l3**2 : (l3 + 1) ** 2] += factor * part
    assert torch.allclose(product(a, b), expected[: (l_out + 1) ** 2] / (l_max + 1), atol=1e-12)


@pytest.mark.parametrize(("l_edge", "l_in", "l_out"), [(3, 1, 3), (2, 2, 2), (3, 0, 3), (4, 2, 3)])
def test_coupling_paths_are_equivariant(l_edge: int, l_in: int, l_out: int) -> None:
    paths = ClebschGordanContraction(l_edge, l_in, l_out, 4).double()
    rotation = o3.rand_matrix(dtype=torch.float64)
    d_edge, d_in, d_out = (representation(rotation, top) for top in (l_edge, l_in, l_out))
    a = torch.randn(len(d_edge), len(d_in), 5, 4, dtype=torch.float64)
    turned = torch.einsum("ab,cd,bdnx->acnx", d_edge, d_in, a)
    message, turned_message = paths(by_degree(a, l_in)), paths(by_degree(turned, l_in))
    assert torch.allclose(turned_message, turn(d_out, message), atol=1e-12)


def test_coupling_paths_are_the_clebsch_gordan_sum() -> None:
    """Path by path with e3nn's coefficients, the factor 1 of the paths of l1 = 0 among them."""
    paths = ClebschGordanContraction(2, 1, 2, 3).double()
    a = torch.randn(9, 4, 5, 3, dtype=torch.float64)
    message = paths(by_degree(a, 1))
    for l3, of_l1_and_l2 in enumerate(
        [[(0, 0), (1, 1)], [(0, 1), (1, 0), (1, 2)], [(0, 2), (1, 1)]]
    ):
        expected = torch.zeros(2 * l3 + 1, 5, 3, dtype=torch.float64)
        for (l1, l2), weight in zip(of_l1_and_l2, paths.weights[l3], strict=True):
            wigner = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
            block = a[l2**2 : (l2 + 1) ** 2, l1**2 : (l1 + 1) ** 2]
            expected += (2 * l3 + 1) ** 0.5 * torch.einsum(
                "abc,banx,xy->cny", wigner, block, weight.detach()
            )
        assert torch.allclose(message[l3**2 : (l3 + 1) ** 2], expected, atol=1e-12)


def test_channel_mix_does_not_mix_components() -> None:
    mix = EquivariantLinear(2, 3, 5).double()
    d = representation(o3.rand_matrix(dtype=torch.float64), 2)
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    assert torch.allclose(mix(turn(d, x)), turn(d, mix(x)), atol=1e-12)


def test_constants_are_not_rounded_by_a_visit_to_float32() -> None:
    product = GauntTensorProduct(3, 3)
    exact = product.evaluate.clone()
    product.float().double()
    assert product.evaluate.dtype == torch.float64
    assert torch.equal(product.evaluate, exact)
