"""Loss: Huber terms for energy per atom, forces and stress, normalised by the counts of the whole step.

Each rank returns sums over its own labels divided by the number of labels on all ranks and micro-batches, so
the result does not depend on how structures fall on ranks. A missing label (NaN) does not count.
With noise s of a label's level of theory (noise.py) its error e counts as e / s, and log s is added if s is learned.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import huber_loss
from torch_geometric.data import Batch

from ...core.settings import Settings


LABELS = ("energy", "forces", "stress")


class LabelNoise(Settings):
    """Noise of the labels of a level of theory."""

    energy: float = Field(default=1.0, gt=0, description="eV/atom")
    forces: float = Field(default=1.0, gt=0, description="eV/A")
    stress: float = Field(default=1.0, gt=0, description="eV/A^3")


class LossConfig(Settings):
    """Weights and Huber widths; a width is where an error stops counting squared and counts linearly.

    Errors that are divided by a noise have no unit, and so have their widths: shares of the noise.
    """

    energy: float = Field(default=1.0, ge=0, description="weight of the energy term, per eV/atom")
    final_energy: float | None = Field(
        default=None,
        gt=0,
        description="what that weight goes to by the same factor in every step; none: it stays",
    )
    forces: float = Field(default=5.0, ge=0, description="weight of the force term, per eV/A")
    stress: float = Field(default=1.0, ge=0, description="weight of the stress term, per eV/A^3")
    energy_width: float = Field(default=0.02, gt=0, description="eV/atom")
    forces_width: float = Field(default=0.02, gt=0, description="eV/A")
    stress_width: float = Field(default=0.005, gt=0, description="eV/A^3")
    noise: dict[str, LabelNoise] = Field(
        default={}, description="level of theory -> what its errors are divided by"
    )
    learn_noise: bool = Field(
        default=False, description="learn the noise of each level, from `noise` or from 1"
    )

    @model_validator(mode="after")
    def _rises_from_something(self) -> Self:
        if self.final_energy and not self.energy:
            raise ValueError(
                "loss.final_energy goes on from loss.energy, which is 0: set that above 0, or leave it out"
            )
        return self

    def at(self, progress: float) -> LossConfig:
        """The weights when this share of all steps is done, from 0 to 1."""
        if self.final_energy is None:
            return self
        energy = self.energy * (self.final_energy / self.energy) ** progress
        return self.model_copy(update={"energy": energy})


def label_counts(batch: Batch) -> Tensor:
    """Labelled structures, force components (weighted by `force_weight`) and stress components, (3,) float64."""
    labelled = torch.isfinite(batch.forces)
    return torch.stack(
        [
            torch.isfinite(batch.energy).sum().double(),
            (labelled * batch.force_weight.unsqueeze(1)).sum().double(),
            torch.isfinite(batch.stress).sum().double(),
        ]
    )


def weighted_loss(
    prediction: dict[str, Tensor],
    batch: Batch,
    counts: Tensor,
    config: LossConfig,
    noise: Tensor | None = None,
) -> Tensor:
    """This batch's share of the step's loss; `counts` (3,) are those of `label_counts` over the whole step.

    noise (H, 3): of energy per atom, forces and stress of each level of theory.
    """
    num_atoms = torch.bincount(batch.batch, minlength=batch.num_graphs)
    # the difference is taken in float64: total energies are large, their errors small
    energy = ((prediction["energy"] - batch.energy) / num_atoms).to(batch.forces.dtype)
    forces = prediction["forces"] - batch.forces
    stress = prediction["stress"] - batch.stress
    counts = counts.clamp(min=1.0).to(forces)
    scales: list[Tensor | None] = [None, None, None]
    if noise is not None:
        own = noise[batch.head]  # (S, 3)
        scales = [own[:, 0], own[batch.batch, 1].unsqueeze(1), own[:, 2].view(-1, 1, 1)]
    energy_sum = _huber_sum(energy, torch.isfinite(batch.energy), config.energy_width, scales[0])
    force_sum = _huber_sum(
        forces,
        torch.isfinite(batch.forces),
        config.forces_width,
        scales[1],
        batch.force_weight.unsqueeze(1),
    )
    stress_sum = _huber_sum(stress, torch.isfinite(batch.stress), config.stress_width, scales[2])
    return (
        config.energy * energy_sum / counts[0]
        + config.forces * force_sum / counts[1]
        + config.stress * stress_sum / counts[2]
    )


def _huber_sum(
    error: Tensor,
    labelled: Tensor,
    width: float,
    noise: Tensor | None,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum of Huber errors over labelled entries, divided by the width so that its slope is 1 for large errors.

    NaN marks a missing label. A prediction that is not finite where there is a label must show, so the mask is
    the label's alone.
    """
    error = torch.where(labelled, error, 0.0)
    if noise is not None:
        error = error / noise
    values = huber_loss(error, torch.zeros_like(error), reduction="none", delta=width) / width
    if noise is not None and noise.requires_grad:
        values = values + torch.where(labelled, noise.log(), 0.0)
    return values.sum() if weight is None else (values * weight).sum()
