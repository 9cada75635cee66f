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

from ...core.labels import LABELS
from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...model_zoo.potential.prediction import Prediction


class LabelNoise(Settings):
    """Noise of the labels of a level of theory."""

    energy: float = Field(default=1.0, gt=0, description="eV/atom")
    forces: float = Field(default=1.0, gt=0, description="eV/A")
    stress: float = Field(default=1.0, gt=0, description="eV/A^3")


class LossConfig(Settings):
    """Weights and Huber widths; a width is where an error stops counting squared and counts linearly.

    Errors that are divided by a noise have no unit, and so have their widths: shares of the noise.
    """

    energy: float = Field(
        default=1.0,
        ge=0,
        description="weight of the energy term, per eV/atom",
        json_schema_extra={"resume": "applied"},
    )
    final_energy: float | None = Field(
        default=None,
        gt=0,
        description="value that this weight approaches by the same factor in every step",
        json_schema_extra={"resume": "applied"},
    )
    forces: float = Field(
        default=5.0,
        ge=0,
        description="weight of the force term, per eV/A",
        json_schema_extra={"resume": "applied"},
    )
    stress: float = Field(
        default=1.0,
        ge=0,
        description="weight of the stress term, per eV/A^3",
        json_schema_extra={"resume": "applied"},
    )
    energy_width: float = Field(
        default=0.02, gt=0, description="eV/atom", json_schema_extra={"resume": "applied"}
    )
    forces_width: float = Field(
        default=0.02, gt=0, description="eV/A", json_schema_extra={"resume": "applied"}
    )
    stress_width: float = Field(
        default=0.005, gt=0, description="eV/A^3", json_schema_extra={"resume": "applied"}
    )
    noise: dict[str, LabelNoise] = Field(
        default={},
        description="level of theory -> noise that its errors are divided by",
        json_schema_extra={"resume": "refused"},  # learned noise starts from it
    )
    learn_noise: bool = Field(
        default=False,
        description="learn the noise of each level, from `noise` or from 1",
        json_schema_extra={"resume": "not_from_off"},  # no learned noise in the checkpoint
    )

    @model_validator(mode="after")
    def _rises_from_something(self) -> Self:
        if self.final_energy and not self.energy:
            raise ValueError(
                "loss.final_energy multiplies loss.energy, which is 0: set that above 0, or leave "
                "loss.final_energy out"
            )
        return self

    def at(self, progress: float) -> LossConfig:
        """The weights when this share of all steps is done, from 0 to 1."""
        if self.final_energy is None:
            return self
        energy = self.energy * (self.final_energy / self.energy) ** progress
        return self.model_copy(update={"energy": energy})


def label_counts(batch: Batch) -> Tensor:
    """Number of labelled components of each registered label, (L,) float64; atoms count by weight."""
    counts = []
    for name, label in LABELS.items():
        labelled = torch.isfinite(batch.labels[name])
        if label.per == "atom" and batch.atom_weight is not None:
            labelled = labelled * _rows(batch.atom_weight, labelled)
        counts.append(labelled.sum().double())
    return torch.stack(counts)


def weighted_loss(
    prediction: Prediction,
    batch: Batch,
    counts: Tensor,
    config: LossConfig,
    noise: Tensor | None = None,
) -> Tensor:
    """This batch's share of the step's loss.

    `counts` (L,) are those of `label_counts` over the whole step. `noise` (H, L) is the noise of each
    label at each level of theory, in the unit of the label's error.
    """
    assert batch.atom_weight is not None
    dtype = batch.atom_weight.dtype
    counts = counts.clamp(min=1.0).to(batch.atom_weight)
    terms = []
    for index, (name, label) in enumerate(LABELS.items()):
        # the difference is taken in the label's own precision: total energies are large, errors small
        error = prediction.labels[name] - batch.labels[name]
        if label.extensive:
            error = error / _rows(batch.atoms_per_structure, error)
        error = error.to(dtype)

        scale = None
        if noise is not None:
            scale = noise[batch.head, index]  # (S,)
            scale = _rows(scale[batch.structure_index] if label.per == "atom" else scale, error)
        terms.append(
            getattr(config, name)
            * _huber_sum(
                error,
                labelled=torch.isfinite(batch.labels[name]),
                width=getattr(config, f"{name}_width"),
                noise=scale,
                weight=_rows(batch.atom_weight, error) if label.per == "atom" else None,
            )
            / counts[index]
        )
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Values (R,) as (R, 1, ...), to be multiplied with every component of a row of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


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
