"""The noise of labels at each level of theory. The loss divides errors by it.

The noise is set in the config (`loss.noise`) or learned (`loss.learn_noise`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import EvenfieldError
from ...core.labels import LABELS
from .loss import LossConfig


# Learning rate of the log noise, relative to that of the weights. The logarithm has to fall by
# several units within a run.
RATE = 5.0

# Lower bound of learned noise. Without it, memorised data would get all the weight.
LEAST = tuple(label.least_noise for label in LABELS.values())


class NoiseScales(nn.Module):
    """Noise (H, L) of each label at each level of theory, in the unit of the label's error.

    Learned noise is least + exp(s), with parameters s. The loss then contains its logarithm, which
    keeps the noise from growing. This is the negative log-likelihood of Kendall, Gal and Cipolla
    (CVPR 2018, eq. 7), with Huber's density instead of the normal one.
    """

    given: Tensor
    least: Tensor

    def __init__(self, config: LossConfig, levels_of_theory: list[str]) -> None:
        """Set up the noise.

        Raises EvenfieldError if the config names only some of the levels of theory, or others.
        """
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
        # buffers, so that they move to the engine's device; they are stored in settings, not in
        # checkpoints
        self.register_buffer("given", start, persistent=False)
        if self.learned:
            least = torch.tensor(LEAST, dtype=torch.float32)
            self.register_buffer("least", least, persistent=False)
            # a given noise below the bound starts just above it
            excess = (start - least).clamp(min=1e-6)
            self.log_excess = nn.Parameter(excess.log())

    def forward(self) -> Tensor:
        """The current noise, (H, L)."""
        if not self.learned:
            return self.given
        return self.least + self.log_excess.exp()

    def groups(self) -> list[dict[str, Any]]:
        """The parameter group for the optimizer; an empty list if the noise is not learned."""
        if not self.learned:
            return []
        return [{"params": [self.log_excess], "weight_decay": 0.0, "rate": RATE}]

    def table(self) -> dict[str, dict[str, float]]:
        """The noise by level of theory and label, JSON-ready."""
        rows = self().detach().cpu().tolist()
        table = {}
        for level, row in zip(self.levels, rows, strict=True):
            table[level] = dict(zip(LABELS, row, strict=True))
        return table


def _check_levels(config: LossConfig, levels_of_theory: list[str]) -> None:
    remedy = f"name each of {', '.join(levels_of_theory)}, or leave it out"
    differing = {*levels_of_theory} ^ {*config.noise}
    # raise for the first one
    for level in sorted(differing):
        if level in config.noise:
            problem = f"loss.noise: {level} is not a level of theory of the data"
        else:
            problem = f"loss.noise: {level} is missing"
        raise EvenfieldError(problem, remedy=remedy)


def noise_of(config: LossConfig, levels_of_theory: list[str]) -> NoiseScales | None:
    """The noise that the config specifies; None if it specifies none."""
    if config.noise or config.learn_noise:
        return NoiseScales(config, levels_of_theory)
    return None
