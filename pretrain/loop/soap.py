"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv:2409.11321).

For a matrix W (m, n) with gradient G:

    L = mean of G G^T,  R = mean of G^T G       moving means over the steps
    P, Q = their eigenvectors                   kept up by a step of orthogonal iteration every REFRESH steps
    W = W - rate P Adam(P^T G Q) Q^T            plain Adam at the start, where P = Q = 1

The weights of a backbone are many small matrices: those of one shape are stepped as one stack (B, m, n), by a few
batched products, in a third of the time that a loop over them takes (docs/decisions/0014).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


REFRESH = 10  # steps between looks at the eigenvectors
BETA = 0.95  # of all moving means of matrices, as in the paper
ADAM_BETAS = (0.9, 0.999)  # of what is no matrix
EPS = 1e-8
# Few elements give gradients of few directions. In the others there is rounding alone, which must neither be stepped
# along nor choose eigenvectors: FLOOR is a share of the root mean square, SHIFT one of the mean eigenvalue.
FLOOR, SHIFT = 1e-4, 1e-2
BLOCK = 32  # fewest rows of the blocks that a matrix with more rows than columns is cut into


class Soap(torch.optim.Optimizer):
    """SOAP for the parameters of groups marked `matrices`, AdamW for the others, with decoupled weight decay for all.

    A parameter (B, m, n) is a stack of matrices; one (m, n) with far more rows than columns is cut into blocks of rows.
    The state is there from the start: who resumes copies into it.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "matrices": False})
        self._stacks: list[tuple[dict[str, Any], _Stack]] = []
        for group in self.param_groups:
            if group["matrices"]:
                self._stacks += [(group, _Stack(same)) for same in _by_shape(group["params"])]
            else:
                for parameter in group["params"]:
                    moments = {
                        key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")
                    }
                    self.state[parameter] = {
                        "step": torch.zeros((), device=parameter.device),
                        **moments,
                    }
        for _, stack in self._stacks:
            self.state.update(stack.states())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters hold; all of them must hold one."""
        for group, stack in self._stacks:
            stack.step(group["lr"], group["weight_decay"])
        for group in self.param_groups:
            if not group["matrices"]:
                self._adam(group)

    def _adam(self, group: dict[str, Any]) -> None:
        parameters, states = group["params"], [self.state[p] for p in group["params"]]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
        )


class _Stack:
    """Parameters whose matrices have one shape (m, n), stepped as one tensor (B, m, n)."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.shapes = parameters, [_as_matrices(p) for p in parameters]
        self.sizes = [shape[0] for shape in self.shapes]
        (_, m, n), size, like = self.shapes[0], sum(self.sizes), parameters[0]
        self.step_count = torch.zeros(())  # on the CPU: it is read in every step
        self.exp_avg, self.exp_avg_sq = like.new_zeros(size, m, n), like.new_zeros(size, m, n)
        self.left, self.right = like.new_zeros(size, m, m), like.new_zeros(size, n, n)  # L, R
        self.left_basis = torch.eye(m, device=like.device).repeat(size, 1, 1)  # P
        self.right_basis = torch.eye(n, device=like.device).repeat(size, 1, 1)  # Q

    def states(self) -> dict[Tensor, dict[str, Tensor]]:
        """Each parameter's part of the state, as views."""
        names = ("exp_avg", "exp_avg_sq", "left", "right", "left_basis", "right_basis")
        parts = zip(*(getattr(self, name).split(self.sizes) for name in names), strict=True)
        return {
            parameter: {"step": self.step_count} | dict(zip(names, own, strict=True))
            for parameter, own in zip(self.parameters, parts, strict=True)
        }

    def step(self, rate: float, weight_decay: float) -> None:
        """Moving means, Adam in the eigenbasis, and now and then a better eigenbasis."""
        gradient = self._gradient()
        self.step_count += 1
        count = int(self.step_count)
        correction = 1 - BETA**count
        self.left.baddbmm_(gradient, gradient.mT, beta=BETA, alpha=1 - BETA)
        self.right.baddbmm_(gradient.mT, gradient, beta=BETA, alpha=1 - BETA)
        turned = self.left_basis.mT @ gradient @ self.right_basis
        self.exp_avg.lerp_(turned, 1 - BETA)
        self.exp_avg_sq.mul_(BETA).addcmul_(turned, turned, value=1 - BETA)
        # a turn keeps the sum of squares: the sum of exp_avg_sq is the trace of L
        mean = self.left.diagonal(dim1=1, dim2=2).sum(1).div_(turned[0].numel()).view(-1, 1, 1)
        size = self.exp_avg_sq.sqrt().add_(FLOOR * mean.sqrt_() + EPS * correction**0.5)
        update = self.left_basis @ (self.exp_avg / size) @ self.right_basis.mT
        if weight_decay:
            torch._foreach_mul_(self.parameters, 1 - rate * weight_decay)
        parts = [
            u.view_as(p) for u, p in zip(update.split(self.sizes), self.parameters, strict=True)
        ]
        torch._foreach_add_(self.parameters, parts, alpha=-rate / correction**0.5)
        if count % REFRESH == 0:
            self._refresh()

    def _gradient(self) -> Tensor:
        """Of all matrices, (B, m, n)."""
        gradients = []
        for parameter, shape in zip(self.parameters, self.shapes, strict=True):
            assert parameter.grad is not None, "every parameter takes part in every step"
            gradients.append(parameter.grad.reshape(shape))
        return torch.cat(gradients)

    def _refresh(self) -> None:
        """Turn the eigenvectors towards those of L and R, and the mean gradient with them."""
        left, right = _iterated(self.left, self.left_basis), _iterated(self.right, self.right_basis)
        self.exp_avg.copy_(
            (left.mT @ self.left_basis) @ self.exp_avg @ (self.right_basis.mT @ right)
        )
        self.left_basis.copy_(left)
        self.right_basis.copy_(right)


def _iterated(factor: Tensor, basis: Tensor) -> Tensor:
    """A step of orthogonal iteration of a factor (B, m, m); the shift lets directions without gradients stay."""
    shift = SHIFT * factor.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
    return torch.linalg.qr(torch.baddbmm(shift * basis, factor, basis)).Q


def _as_matrices(parameter: Tensor) -> tuple[int, int, int]:
    """The shape (B, m, n) that a parameter (B, m, n) or (m, n) is stepped in."""
    if parameter.ndim == 3:
        size, m, n = parameter.shape
        return size, m, n
    m, n = parameter.shape
    block = max(n, BLOCK)
    return (m // block, block, n) if m % block == 0 else (1, m, n)


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    """The parameters whose matrices have one shape, together."""
    together: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        together[_as_matrices(parameter)[1:]].append(parameter)
    return list(together.values())
