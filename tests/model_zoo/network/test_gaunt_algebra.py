"""The algebra against what e3nn and closed forms say."""

from __future__ import annotations

import itertools

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


def components(degree: int) -> slice:
    """Where the 2 l + 1 components of one degree are among all."""
    return slice(degree**2, (degree + 1) ** 2)


def by_degree(a: torch.Tensor, l_in: int) -> list[torch.Tensor]:
    """A (K2, K1, N, C) -> its parts by l1, (K2 * (2 l1 + 1), N, C)."""
    parts = []
    for l1 in range(l_in + 1):
        part = a[:, components(l1)]
        parts.append(part.flatten(0, 1))
    return parts


def turn(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The field x (K, N, C) after a rotation, whose matrix on the components is (K, K)."""
    return torch.einsum("ab,bnc->anc", matrix, x)


def gaunt_factor(l1: int, l2: int, l3: int, wigner: torch.Tensor) -> torch.Tensor:
    """The number that turns a 3j symbol into an integral of three harmonics.

    With |Y_l|^2 = 2 l + 1:
    <Y3, Y1 Y2> = sqrt((2 l1 + 1) (2 l2 + 1) (2 l3 + 1)) w3j(0, 0, 0) w3j(m1, m2, m3)
    """
    # at the pole of e3nn's convention (y) only the component m = 0 is not zero
    pole = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    first = o3.spherical_harmonics(l1, pole, True, "component")
    second = o3.spherical_harmonics(l2, pole, True, "component")
    third = o3.spherical_harmonics(l3, pole, True, "component")
    return torch.einsum("a,b,c,abc->", first, second, third, wigner)


def couples(l1: int, l2: int, l3: int) -> bool:
    """The triangle rule."""
    return abs(l1 - l2) <= l3 <= l1 + l2


@pytest.mark.parametrize(
    ("l_max", "l_out"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (3, 1), (1, 0), (3, 0)]
)
def test_sphere_product_is_the_gaunt_product(l_max: int, l_out: int) -> None:
    """It equals e3nn's Clebsch-Gordan coefficients times the Gaunt factor, path by path."""
    product = GauntTensorProduct(l_max, l_out).double()
    size = (l_max + 1) ** 2
    a = torch.randn(size, 3, 2, dtype=torch.float64)
    b = torch.randn(size, 3, 2, dtype=torch.float64)

    expected = torch.zeros(size, 3, 2, dtype=torch.float64)
    degrees = range(l_max + 1)
    for l1, l2, l3 in itertools.product(degrees, repeat=3):
        if not couples(l1, l2, l3):
            continue
        wigner = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
        factor = gaunt_factor(l1, l2, l3, wigner)
        a_part = a[components(l1)]
        b_part = b[components(l2)]
        coupled = torch.einsum("abc,anx,bnx->cnx", wigner, a_part, b_part)
        expected[components(l3)] += factor * coupled

    # the product keeps the variance of its inputs, and the plain integral does not
    expected = expected / (l_max + 1)
    num_out = (l_out + 1) ** 2
    assert torch.allclose(product(a, b), expected[:num_out], atol=1e-12)


@pytest.mark.parametrize(("l_edge", "l_in", "l_out"), [(3, 1, 3), (2, 2, 2), (3, 0, 3), (4, 2, 3)])
def test_coupling_paths_are_equivariant(l_edge: int, l_in: int, l_out: int) -> None:
    paths = ClebschGordanContraction(l_edge, l_in, l_out, 4).double()
    rotation = o3.rand_matrix(dtype=torch.float64)
    of_edge = representation(rotation, l_edge)
    of_input = representation(rotation, l_in)
    of_output = representation(rotation, l_out)

    a = torch.randn(len(of_edge), len(of_input), 5, 4, dtype=torch.float64)
    turned = torch.einsum("ab,cd,bdnx->acnx", of_edge, of_input, a)
    message = paths(by_degree(a, l_in))
    message_of_turned = paths(by_degree(turned, l_in))
    assert torch.allclose(message_of_turned, turn(of_output, message), atol=1e-12)


def test_coupling_paths_are_the_clebsch_gordan_sum() -> None:
    """Path by path with e3nn's coefficients, the factor 1 of the paths of l1 = 0 among them."""
    paths = ClebschGordanContraction(2, 1, 2, 3).double()
    a = torch.randn(9, 4, 5, 3, dtype=torch.float64)
    message = paths(by_degree(a, 1))

    # (l1, l2) of natural parity with l1 <= 1 and l2 <= 2, in the order of the weights
    pairs_of_l3 = [
        [(0, 0), (1, 1)],
        [(0, 1), (1, 0), (1, 2)],
        [(0, 2), (1, 1)],
    ]
    for l3, pairs in enumerate(pairs_of_l3):
        num_components = 2 * l3 + 1
        expected = torch.zeros(num_components, 5, 3, dtype=torch.float64)
        for (l1, l2), weight in zip(pairs, paths.weights[l3].detach(), strict=True):
            wigner = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
            block = a[components(l2), components(l1)]
            coupled = torch.einsum("abc,banx,xy->cny", wigner, block, weight)
            expected += num_components**0.5 * coupled
        assert torch.allclose(message[components(l3)], expected, atol=1e-12)


def test_channel_mix_does_not_mix_components() -> None:
    mix = EquivariantLinear(2, 3, 5).double()
    rotation = o3.rand_matrix(dtype=torch.float64)
    matrix = representation(rotation, 2)
    x = torch.randn(9, 4, 3, dtype=torch.float64)
    turned_first = mix(turn(matrix, x))
    mixed_first = turn(matrix, mix(x))
    assert torch.allclose(turned_first, mixed_first, atol=1e-12)


def test_constants_are_not_rounded_by_a_visit_to_float32() -> None:
    product = GauntTensorProduct(3, 3)
    exact = product.evaluate.clone()
    product.float().double()
    assert product.evaluate.dtype == torch.float64
    assert torch.equal(product.evaluate, exact)
