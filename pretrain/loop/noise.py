"""Noise of the labels of each level of theory, by which their errors are divided in the loss: given, or learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.labels import LABELS
from .loss import LossConfig


RATE = 5.0  # learning rate of log noise over that of the weights: it has to fall by some units within a run
# a source learned by heart must not get all the weight
LEAST = tuple(label.least_noise for label in LABELS.values())


class NoiseScales(nn.Module):
    """Noise (H, L) of each label at each level of theory, in the unit of the label's error.

    Learned, it is least + exp(s), s a parameter, and the loss holds the logarithm that keeps it from growing: the
    negative log-likelihood of Kendall, Gal and Cipolla (CVPR 2018, eq. 7), with Huber's density for Gauss's.
    """

    given: Tensor
    least: Tensor

    def __init__(self, config: LossConfig, levels_of_theory: list[str]) -> None:
        """Raises ValueError when some, but not all levels of theory are given a noise."""
        super().__init__()
        wrong = sorted({*levels_of_theory} ^ {*config.noise}) if config.noise else []
        if wrong:
            kind = "is no level of theory of the data" if wrong[0] in config.noise else "is missing"
            raise ValueError(
                f"loss.noise: {wrong[0]} {kind}: name each of {', '.join(levels_of_theory)}, or none"
            )
        rows = [config.noise[level] for level in levels_of_theory] if config.noise else []
        start = torch.tensor(
            [[getattr(row, name) for name in LABELS] for row in rows] or [[1.0] * len(LABELS)]
        )
        start = start.expand(len(levels_of_theory), len(LABELS)).clone()
        self.levels, self.learned = list(levels_of_theory), config.learn_noise
        self.register_buffer("given", start, persistent=False)
        if self.learned:
            self.register_buffer("least", torch.tensor(LEAST), persistent=False)
            self.log_excess = nn.Parameter((start - torch.tensor(LEAST)).clamp(min=1e-6).log())

    def forward(self) -> Tensor:
        """(H, L)."""
        return self.least + self.log_excess.exp() if self.learned else self.given

    def groups(self) -> list[dict[str, Any]]:
        """For the optimizer."""
        return (
            [{"params": [self.log_excess], "weight_decay": 0.0, "rate": RATE}]
            if self.learned
            else []
        )

    def table(self) -> dict[str, dict[str, float]]:
        """By level of theory and label, to be read."""
        rows = self().detach().cpu().tolist()
        return {
            level: dict(zip(LABELS, row, strict=True))
            for level, row in zip(self.levels, rows, strict=True)
        }


def noise_of(config: LossConfig, levels_of_theory: list[str]) -> NoiseScales | None:
    """The noise that a config asks for, if it does."""
    return NoiseScales(config, levels_of_theory) if config.noise or config.learn_noise else None
