"""Equivariant algebra in component-major layout (K, N, C).

K = (l_max + 1)^2 components, N atoms, C channels. The components of one degree l are adjacent in
memory. An equivariant linear map of one degree is therefore a single matrix product on a view. A
change of basis over components (to points on the sphere, or to Clebsch-Gordan paths) is one product
with a constant matrix.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from e3nn import o3
from scipy.integrate import lebedev_rule
from torch import Tensor, nn

from ..exact_buffers import ExactBuffers
from .paths import natural_parity_paths


def components_per_degree(l_max: int) -> list[int]:
    """The sizes 2 l + 1 for l = 0..l_max, for `Tensor.split`.

    `split` is used instead of slices because its backward pass is a single copy. The backward pass
    of each slice fills a whole tensor.

    >>> components_per_degree(3)
    [1, 3, 5, 7]
    """
    return [2 * degree + 1 for degree in range(l_max + 1)]


class EquivariantLinear(nn.Module):
    """y[l m, i, c'] = sum_c W[l][c, c'] x[l m, i, c].

    One weight matrix for each degree l, shared by its components m.
    """

    def __init__(self, l_max: int, channels_in: int, channels_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.sizes = components_per_degree(l_max)
        # the sum over incoming channels has unit variance, times `scale` squared
        weight = torch.randn(l_max + 1, channels_in, channels_out, dtype=torch.float32)
        self.weight = nn.Parameter(weight * scale / channels_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(K, N, C) -> (K, N, C')."""
        outputs = []
        for part, weight in zip(x.split(self.sizes), self.weight, strict=True):
            outputs.append(part @ weight)
        return torch.cat(outputs)


class ClebschGordanContraction(ExactBuffers):
    """Clebsch-Gordan contraction of the aggregated A[l2 m2, l1 m1] to M[l3 m3].

    The weights over paths (l1, l2 -> l3) and channels are learned. Only paths of natural parity
    (l1 + l2 + l3 even) are kept, because the Gaunt tensor product cannot use others. For l1 = 0,
    the only paths are (0, l3 -> l3) with factor 1, so this part of A is used directly.
    """

    def __init__(self, l_edge: int, l_in: int, l_out: int, channels: int) -> None:
        super().__init__()
        # path_counts[l3][l1] is the number of paths from l1 to l3
        self.path_counts: list[list[int]] = []
        weights = []
        # the rows of the coupling matrix of each l1, path by path
        rows: list[list[Tensor]] = [[] for _ in range(l_in + 1)]

        for l3 in range(l_out + 1):
            paths = natural_parity_paths(l_in, l_edge, l3)
            counts = [0] * (l_in + 1)
            for l1, _ in paths:
                counts[l1] += 1
            self.path_counts.append(counts)

            # the sum over all paths and channels has unit variance
            scale = math.sqrt(len(paths) * channels)
            weight = torch.randn(len(paths), channels, channels, dtype=torch.float32)
            weights.append(nn.Parameter(weight / scale))

            # this order matters: `forward` splits the product by l3, and each block by path
            for l1, l2 in paths:
                path_rows = _coupling_rows(l1, l2, l3, l_edge)
                rows[l1].append(path_rows)

        # block_sizes[l1][l3] is the number of rows of the coupled A of l1 that belong to l3
        self.block_sizes = [components_per_degree(l_edge)]
        for l1 in range(1, l_in + 1):
            sizes = []
            for l3, counts in enumerate(self.path_counts):
                num_components = 2 * l3 + 1
                sizes.append(counts[l1] * num_components)
            self.block_sizes.append(sizes)

            coupling = torch.cat(rows[l1])  # (rows, K2 * (2 l1 + 1))
            self.register_buffer(f"coupling{l1}", coupling, persistent=False)
        self.weights = nn.ParameterList(weights)

    def forward(self, aggregated: list[Tensor]) -> Tensor:
        """A by l1, each (K2 * (2 l1 + 1), N, C) -> M (K3, N, C)."""
        scalars, *others = aggregated
        _, num_atoms, channels = scalars.shape

        # coupled[l1][l3]: one product with a constant matrix for each l1 above 0
        coupled = [scalars.split(self.block_sizes[0])]
        for l1, part in enumerate(others, start=1):
            coupling = getattr(self, f"coupling{l1}").to(part.dtype)
            product = coupling @ part.flatten(1)
            coupled.append(product.split(self.block_sizes[l1]))

        outputs = []
        for l3, weights in enumerate(self.weights):
            weights_by_l1 = weights.split(self.path_counts[l3])

            mixed = []
            for blocks, weight in zip(coupled, weights_by_l1, strict=True):
                num_paths = len(weight)
                # this l1 may not couple to l3
                if num_paths == 0:
                    continue
                by_path = blocks[l3].reshape(num_paths, -1, channels)
                mixed.append(_sum_over_paths(by_path @ weight))

            # starting from 0 would add an operation to the graph
            total = sum(mixed[1:], start=mixed[0])
            outputs.append(total.view(-1, num_atoms, channels))
        return torch.cat(outputs)


def _sum_over_paths(mixed: Tensor) -> Tensor:
    """(paths, M, C) -> (M, C)."""
    # squeeze is free, and there is usually only one path
    if len(mixed) == 1:
        return mixed.squeeze(0)
    return mixed.sum(0)


@cache
def _coupling_rows(l1: int, l2: int, l3: int, l_edge: int) -> Tensor:
    """Coupling rows (2 l3 + 1, K2 * (2 l1 + 1)) of one path, scaled to keep unit variance.

    Cached, because recomputing them for every layer of a deep network would take seconds.
    """
    num_edge = (l_edge + 1) ** 2
    rows = torch.zeros(2 * l3 + 1, num_edge, 2 * l1 + 1, dtype=torch.float64)

    wigner = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
    wigner = wigner.permute(2, 1, 0)  # (m3, m2, m1)

    # only the components of A of degree l2 take part in this path
    start = l2**2
    end = (l2 + 1) ** 2
    # the squares of a 3j symbol sum to 1 over all m, and so to 1 / (2 l3 + 1) for each m3
    rows[:, start:end] = math.sqrt(2 * l3 + 1) * wigner
    return rows.flatten(1)


class GauntTensorProduct(ExactBuffers):
    """Product of two fields on the sphere, projected back to components: P((G a) * (G b)).

    G evaluates the components at the points of a Lebedev rule. P integrates against the spherical
    harmonics with the weights of the rule. The rule is exact for degree 2 l_max + l_out. The result
    is therefore the Gaunt tensor product of all degrees with all degrees (Luo, Chen and
    Krishnapriyan, ICLR 2024), and it is exactly equivariant.
    """

    evaluate: Tensor
    project: Tensor

    def __init__(self, l_max: int, l_out: int) -> None:
        super().__init__()
        harmonics, quadrature = _harmonics_at_points(l_max, 2 * l_max + l_out)

        # the factor l_max + 1 keeps the variance of the product near that of its inputs
        evaluate = harmonics / (l_max + 1)
        num_out = (l_out + 1) ** 2
        projected = harmonics[:, :num_out].T
        project = projected * quadrature * (l_max + 1)
        self.register_buffer("evaluate", evaluate, persistent=False)  # (points, K)
        self.register_buffer("project", project, persistent=False)  # (K_out, points)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two fields (K, N, C) -> (K_out, N, C)."""
        _, num_atoms, channels = a.shape
        evaluate = self.evaluate.to(a.dtype)
        project = self.project.to(a.dtype)

        a_at_points = evaluate @ a.reshape(len(a), -1)  # (points, N * C)
        b_at_points = evaluate @ b.reshape(len(b), -1)
        product = project @ (a_at_points * b_at_points)
        return product.view(-1, num_atoms, channels)


@cache
def _harmonics_at_points(l_max: int, degree: int) -> tuple[Tensor, Tensor]:
    """Harmonics (points, K) and weights (points,) of the smallest Lebedev rule for `degree`.

    The weights sum to 1, so an integral is a mean over the sphere. Cached for the next product.
    """
    # Lebedev rules have odd degrees, starting at 3
    if degree % 2 == 0:
        degree += 1
    points, weights = lebedev_rule(max(degree, 3))

    # SciPy returns one column per point, and weights that sum to 4 pi
    rows = torch.from_numpy(points.T.copy())
    mean_weights = torch.from_numpy(weights / weights.sum())
    harmonics = o3.spherical_harmonics(
        list(range(l_max + 1)),
        rows,
        normalize=True,
        normalization="component",
    )
    return harmonics, mean_weights
