"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv:2409.11321).

For a matrix W (m, n) with gradient G:

    L = mean of G G^T,  R = mean of G^T G       moving means over the steps
    P, Q = their eigenvectors                   updated by orthogonal iteration every REFRESH steps
    W = W - rate P Adam(P^T G Q) Q^T            plain Adam at the start, where P = Q = 1

The weights of a network are many small matrices. Matrices of the same shape are stepped as a stack
(B, m, n) with a few batched products. This takes a third of the time of a loop
(docs/decisions/0014).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


REFRESH = 10  # steps between updates of the eigenvectors
BETA = 0.95  # decay of all moving means for matrices, as in the paper
ADAM_BETAS = (0.9, 0.999)  # for parameters that are not matrices
EPS = 1e-8

# With few elements, gradients lie in few directions. The other directions contain only rounding
# errors, which must neither determine steps nor eigenvectors.
FLOOR = 1e-4  # relative to the root mean square, added to the denominator of Adam
SHIFT = 1e-2  # relative to the mean eigenvalue, added to L and R in the orthogonal iteration

BLOCK = 32  # least number of rows in the blocks into which tall matrices are cut


class Soap(torch.optim.Optimizer):
    """SOAP for groups marked `matrices`, AdamW for the others, with decoupled weight decay.

    A parameter (B, m, n) is treated as a stack of matrices. A parameter (m, n) with many more rows
    than columns is cut into blocks of rows. The state exists from the start, so that a resume can
    copy into it.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "matrices": False})

        # a stack refers to its group, because the engine changes the group's learning rate
        self._stacks: list[tuple[dict[str, Any], _Stack]] = []
        for group in self.param_groups:
            if not group["matrices"]:
                self._prepare_adam(group["params"])
                continue
            for parameters in _by_shape(group["params"]):
                stack = _Stack(parameters)
                self._stacks.append((group, stack))
                self.state.update(stack.states())

    def _prepare_adam(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            self.state[parameter] = {
                # the fused kernel reads the step count on the parameter's device
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step. All parameters must have gradients."""
        for group, stack in self._stacks:
            stack.step(group["lr"], group["weight_decay"])
        for group in self.param_groups:
            if not group["matrices"]:
                self._adam(group)

    def _adam(self, group: dict[str, Any]) -> None:
        parameters = group["params"]
        gradients = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        step_counts = [state["step"] for state in states]

        beta1, beta2 = ADAM_BETAS
        adamw(
            parameters,
            gradients,
            means,
            squares,
            [],  # largest squares, of AMSGrad only
            step_counts,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
        )


class _Stack:
    """Parameters whose matrices have the same shape (m, n), stepped as one tensor (B, m, n).

    In the formulas above, `left` is L, `right` is R, `left_basis` is P, and `right_basis` is Q.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.shapes = [_as_matrices(parameter) for parameter in parameters]
        self.sizes = [shape[0] for shape in self.shapes]

        size = sum(self.sizes)
        _, m, n = self.shapes[0]
        like = parameters[0]

        # on the CPU, because every step reads it, and a read from a GPU would wait for the GPU
        self.step_count = torch.zeros((), dtype=torch.float32)
        self.exp_avg = like.new_zeros(size, m, n)
        self.exp_avg_sq = like.new_zeros(size, m, n)
        self.left = like.new_zeros(size, m, m)
        self.right = like.new_zeros(size, n, n)

        # with the identity, the first steps are those of plain Adam
        self.left_basis = torch.eye(m, dtype=like.dtype, device=like.device).repeat(size, 1, 1)
        self.right_basis = torch.eye(n, dtype=like.dtype, device=like.device).repeat(size, 1, 1)

    def states(self) -> dict[Tensor, dict[str, Tensor]]:
        """The state of each parameter, as views into the stack."""
        # checkpoints must not depend on stacks, which exist only for speed and may change
        whole = {
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "left": self.left,
            "right": self.right,
            "left_basis": self.left_basis,
            "right_basis": self.right_basis,
        }
        states: dict[Tensor, dict[str, Tensor]] = {}
        for parameter in self.parameters:
            states[parameter] = {"step": self.step_count}

        for name, tensor in whole.items():
            parts = tensor.split(self.sizes)
            for parameter, part in zip(self.parameters, parts, strict=True):
                states[parameter][name] = part
        return states

    def step(self, rate: float, weight_decay: float) -> None:
        """Update the moving means and take an Adam step in the eigenbasis.

        The eigenbasis is refreshed every REFRESH steps.
        """
        gradient = self._gradient()
        self.step_count += 1
        count = int(self.step_count)
        # bias correction, because moving means start at zero
        correction = 1 - BETA**count

        # L and R
        self.left.baddbmm_(gradient, gradient.mT, beta=BETA, alpha=1 - BETA)
        self.right.baddbmm_(gradient.mT, gradient, beta=BETA, alpha=1 - BETA)

        # Adam's moments in the eigenbasis
        turned = self.left_basis.mT @ gradient @ self.right_basis
        self.exp_avg.lerp_(turned, 1 - BETA)
        self.exp_avg_sq.mul_(BETA).addcmul_(turned, turned, value=1 - BETA)

        # A rotation preserves the sum of squares. The sum of exp_avg_sq is therefore the trace of
        # L, which has m terms instead of m n.
        trace = self.left.diagonal(dim1=1, dim2=2).sum(1)
        mean_square = trace.div_(turned[0].numel()).view(-1, 1, 1)
        floor = FLOOR * mean_square.sqrt_()
        size = self.exp_avg_sq.sqrt().add_(floor + EPS * correction**0.5)
        update = self.left_basis @ (self.exp_avg / size) @ self.right_basis.mT

        if weight_decay:
            torch._foreach_mul_(self.parameters, 1 - rate * weight_decay)
        parts = []
        for part, parameter in zip(update.split(self.sizes), self.parameters, strict=True):
            parts.append(part.view_as(parameter))

        # the ratio of the corrections of exp_avg and of the root of exp_avg_sq, with equal beta
        torch._foreach_add_(self.parameters, parts, alpha=-rate / correction**0.5)

        if count % REFRESH == 0:
            self._refresh()

    def _gradient(self) -> Tensor:
        """The gradients of all matrices, (B, m, n)."""
        gradients = []
        for parameter, shape in zip(self.parameters, self.shapes, strict=True):
            assert parameter.grad is not None, "every parameter takes part in every step"
            gradients.append(parameter.grad.reshape(shape))
        return torch.cat(gradients)

    def _refresh(self) -> None:
        """Update the eigenvectors of L and R, and rotate the mean gradient to the new basis."""
        left = _iterated(self.left, self.left_basis)
        right = _iterated(self.right, self.right_basis)

        # exp_avg_sq is unchanged, as in the paper, because squares cannot be rotated
        left_turn = left.mT @ self.left_basis
        right_turn = self.right_basis.mT @ right
        self.exp_avg.copy_(left_turn @ self.exp_avg @ right_turn)
        self.left_basis.copy_(left)
        self.right_basis.copy_(right)


def _iterated(factor: Tensor, basis: Tensor) -> Tensor:
    """One step of orthogonal iteration for a factor (B, m, m), starting from `basis`.

    A shift keeps directions without gradients unchanged.
    """
    mean_eigenvalue = factor.diagonal(dim1=1, dim2=2).mean(1)
    shift = SHIFT * mean_eigenvalue.view(-1, 1, 1)
    product = torch.baddbmm(shift * basis, factor, basis)
    return torch.linalg.qr(product).Q


def _as_matrices(parameter: Tensor) -> tuple[int, int, int]:
    """The shape (B, m, n) in which a parameter (B, m, n) or (m, n) is stepped."""
    if parameter.ndim == 3:
        size, m, n = parameter.shape
        return size, m, n

    m, n = parameter.shape
    block = max(n, BLOCK)
    if m % block:
        # not divisible into equal blocks, so the matrix stays whole
        return 1, m, n
    return m // block, block, n


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Group parameters whose matrices have the same shape."""
    together: defaultdict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        _, m, n = _as_matrices(parameter)
        together[m, n].append(parameter)
    return list(together.values())
