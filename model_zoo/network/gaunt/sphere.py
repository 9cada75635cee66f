"""Equivariant algebra in component-major layout (K, N, C): K = (l_max + 1)^2 components, N atoms, C channels.

Components of one l stand together, so a channel mix of one l is a single matrix product on a view, and a change
of basis over components (to points on the sphere, to Clebsch-Gordan paths) is one product with a constant.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from scipy.integrate import lebedev_rule
from torch import Tensor, nn

from ..exact_buffers import ExactBuffers


def degree_heights(l_max: int) -> list[int]:
    """Numbers of components of l = 0..l_max.

    They are for `split`, whose backward is one copy; that of a slice fills a tensor.

    >>> degree_heights(3)
    [1, 3, 5, 7]
    """
    return [2 * degree + 1 for degree in range(l_max + 1)]


class ChannelMix(nn.Module):
    """y[l m, i, c'] = sum_c W[l][c, c'] x[l m, i, c]: one weight matrix for each l, shared by its components."""

    def __init__(self, l_max: int, channels_in: int, channels_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.heights = degree_heights(l_max)
        self.weight = nn.Parameter(
            torch.randn(l_max + 1, channels_in, channels_out) * scale / channels_in**0.5
        )

    def forward(self, x: Tensor) -> Tensor:
        """(K, N, C) -> (K, N, C')."""
        return torch.cat(
            [part @ weight for part, weight in zip(x.split(self.heights), self.weight, strict=True)]
        )


class CouplingPaths(ExactBuffers):
    """Clebsch-Gordan contraction of the aggregated A[l2 m2, l1 m1] to M[l3 m3], learned over paths and channels.

    Only natural parity (l1 + l2 + l3 even) is kept: it is what the product on the sphere can use. The paths of l1 = 0
    are (0, l3 -> l3) with the factor 1, so that part of A is taken as it is.
    """

    def __init__(self, l_edge: int, l_in: int, l_out: int, channels: int) -> None:
        super().__init__()
        self.counts: list[list[int]] = []  # of paths, by l3 and l1
        rows: list[list[Tensor]] = [[] for _ in range(l_in + 1)]
        weights = []
        for l3 in range(l_out + 1):
            paths = [
                (l1, l2)
                for l1 in range(l_in + 1)
                for l2 in range(l_edge + 1)
                if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
            ]
            self.counts.append([sum(l1 == degree for l1, _ in paths) for degree in range(l_in + 1)])
            weights.append(
                nn.Parameter(
                    torch.randn(len(paths), channels, channels) / math.sqrt(len(paths) * channels)
                )
            )
            for l1, l2 in paths:
                rows[l1].append(_path_rows(l1, l2, l3, l_edge))
        self.heights = [
            degree_heights(l_edge)
        ]  # of what is multiplied by the weights, by l1 and l3
        for l1 in range(1, l_in + 1):
            self.heights.append([count[l1] * (2 * l3 + 1) for l3, count in enumerate(self.counts)])
            self.register_buffer(
                f"coupling{l1}", torch.cat(rows[l1]), persistent=False
            )  # (R, K2 * (2 l1 + 1))
        self.weights = nn.ParameterList(weights)

    def forward(self, aggregated: list[Tensor]) -> Tensor:
        """A by l1, each (K2 * (2 l1 + 1), N, C) -> M (K3, N, C)."""
        scalars, *others = aggregated
        _, num_atoms, channels = scalars.shape
        coupled = [scalars.split(self.heights[0])]  # by l1 and l3
        for l1, part in enumerate(others, start=1):
            coupling = getattr(self, f"coupling{l1}").to(part.dtype)
            coupled.append((coupling @ part.flatten(1)).split(self.heights[l1]))
        outputs = []
        for l3, (counts, weights) in enumerate(zip(self.counts, self.weights, strict=True)):
            mixed = [
                _sum_of_paths(blocks[l3].reshape(len(weight), -1, channels) @ weight)
                for blocks, weight in zip(coupled, weights.split(counts), strict=True)
                if len(weight)
            ]
            outputs.append(sum(mixed[1:], start=mixed[0]).view(-1, num_atoms, channels))
        return torch.cat(outputs)


def _sum_of_paths(mixed: Tensor) -> Tensor:
    """(paths, M, C) -> (M, C)."""
    return mixed.squeeze(0) if len(mixed) == 1 else mixed.sum(0)


def _path_rows(l1: int, l2: int, l3: int, l_edge: int) -> Tensor:
    """Rows (2 l3 + 1, K2 * (2 l1 + 1)) of one path, scaled to keep unit variance."""
    rows = torch.zeros(2 * l3 + 1, (l_edge + 1) ** 2, 2 * l1 + 1, dtype=torch.float64)
    wigner = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).permute(2, 1, 0)  # (m3, m2, m1)
    rows[:, l2**2 : (l2 + 1) ** 2] = math.sqrt(2 * l3 + 1) * wigner
    return rows.flatten(1)


class SphereProduct(ExactBuffers):
    """Pointwise product of two fields on the sphere, projected back: P((G a) * (G b)).

    G evaluates the components on the points of a Lebedev rule, P integrates against the harmonics.  The rule
    is exact for degree 2 l_max + l_out, so this is the Gaunt tensor product of all l to all l
    (Luo, Chen and Krishnapriyan, ICLR 2024) and exactly equivariant.
    """

    evaluate: Tensor
    project: Tensor

    def __init__(self, l_max: int, l_out: int) -> None:
        super().__init__()
        degree = 2 * l_max + l_out
        degree += (degree + 1) % 2  # Lebedev rules have odd degree
        points, weights = lebedev_rule(max(degree, 3))
        harmonics = o3.spherical_harmonics(
            list(range(l_max + 1)),
            torch.from_numpy(points.T.copy()),
            normalize=True,
            normalization="component",
        )  # (P, K)
        evaluate = harmonics / (l_max + 1)
        project = (
            harmonics[:, : (l_out + 1) ** 2].T
            * torch.from_numpy(weights / weights.sum())
            * (l_max + 1)
        )
        self.register_buffer("evaluate", evaluate, persistent=False)  # (P, K)
        self.register_buffer("project", project, persistent=False)  # (K_out, P)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two fields (K, N, C) -> (K_out, N, C)."""
        _, num_atoms, channels = a.shape
        evaluate, project = self.evaluate.to(a.dtype), self.project.to(a.dtype)
        product = (evaluate @ a.reshape(len(a), -1)) * (
            evaluate @ b.reshape(len(b), -1)
        )  # (P, N * C)
        return (project @ product).view(-1, num_atoms, channels)
