"""Noise of the labels of each level of theory, by which the loss divides their errors.

It is given in the settings (`loss.noise`), or learned (`loss.learn_noise`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import EvenfieldError
from ...core.labels import LABELS
from .loss import LossConfig


# Learning rate of log noise over that of the weights: the logarithm has to fall by some units
# within a run.
RATE = 5.0

# A lower bound. Without it, a source that is learned by heart would get all the weight.
LEAST = tuple(label.least_noise for label in LABELS.values())


class NoiseScales(nn.Module):
    """Noise (H, L) of each label at each level of theory, in the unit of the label's error.

    Learned, it is least + exp(s) with parameters s. The loss then contains its logarithm, which
    keeps it from growing: the negative log-likelihood of Kendall, Gal and Cipolla (CVPR 2018,
    eq. 7), with Huber's density in place of the normal one.
    """

    given: Tensor
    least: Tensor

    def __init__(self, config: LossConfig, levels_of_theory: list[str]) -> None:
        """Raises EvenfieldError when some, but not all levels of theory are given a noise."""
        super().__init__()
        if config.noise:
            _check_levels(config, levels_of_theory)
        rows = []
        for level in levels_of_theory:
            row = [1.0] * len(LABELS)
            if config.noise:
                row = [getattr(config.noise[level], name) for name in LABELS]
            rows.append(row)
        start = torch.tensor(rows, dtype=torch.float32)  # (H, L)

        self.levels = list(levels_of_theory)
        self.learned = config.learn_noise
        # Buffers, so that they move to the engine's device; settings hold them, not checkpoints.
        self.register_buffer("given", start, persistent=False)
        if self.learned:
            least = torch.tensor(LEAST, dtype=torch.float32)
            self.register_buffer("least", least, persistent=False)
            # a given noise below the bound starts just above it
            excess = (start - least).clamp(min=1e-6)
            self.log_excess = nn.Parameter(excess.log())

    def forward(self) -> Tensor:
        """(H, L)."""
        if not self.learned:
            return self.given
        return self.least + self.log_excess.exp()

    def groups(self) -> list[dict[str, Any]]:
        """The group of parameters for the optimizer; none if the noise is given."""
        if not self.learned:
            return []
        return [{"params": [self.log_excess], "weight_decay": 0.0, "rate": RATE}]

    def table(self) -> dict[str, dict[str, float]]:
        """Noise by level of theory and label, JSON-ready."""
        rows = self().detach().cpu().tolist()
        table = {}
        for level, row in zip(self.levels, rows, strict=True):
            table[level] = dict(zip(LABELS, row, strict=True))
        return table


def _check_levels(config: LossConfig, levels_of_theory: list[str]) -> None:
    remedy = f"name each of {', '.join(levels_of_theory)}, or leave it out"
    differing = {*levels_of_theory} ^ {*config.noise}
    # the first one is enough for an error
    for level in sorted(differing):
        if level in config.noise:
            problem = f"loss.noise: {level} is not a level of theory of the data"
        else:
            problem = f"loss.noise: {level} is missing"
        raise EvenfieldError(problem, remedy=remedy)


def noise_of(config: LossConfig, levels_of_theory: list[str]) -> NoiseScales | None:
    """The noise that a config asks for; None if it asks for none."""
    if config.noise or config.learn_noise:
        return NoiseScales(config, levels_of_theory)
    return None
