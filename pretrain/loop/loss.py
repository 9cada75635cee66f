"""The loss: a Huber term for each registered label, normalised by the counts of the whole step.

Each rank returns the sum over its own labels, divided by the number of labels on all ranks and in
all batches of the step. The result therefore does not depend on how structures are distributed over
ranks. Missing labels (NaN) do not count.

If a level of theory has a noise s (noise.py), an error e enters as e / s, and log s is added if s
is learned.

Shapes: H levels of theory, L labels, S structures, N atoms, R rows (structures or atoms).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, create_model, model_validator
from torch import Tensor
from torch.nn.functional import huber_loss

from ...core.labels import LABELS
from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...model_zoo.potential.prediction import Prediction


def _noise_fields() -> dict[str, Any]:
    return {
        name: (float, Field(default=1.0, gt=0, description=label.error_unit))
        for name, label in LABELS.items()
    }


def _term_fields() -> dict[str, Any]:
    """A weight and a Huber width for each label."""
    fields: dict[str, Any] = {}
    for name, label in LABELS.items():
        fields[name] = (
            float,
            Field(
                default=label.default_weight,
                ge=0,
                description=f"weight of the {label.title} term, per {label.error_unit}",
                json_schema_extra={"resume": "applied"},
            ),
        )
        fields[f"{name}_width"] = (
            float,
            Field(
                default=label.huber_width,
                gt=0,
                description=f"{label.title} error beyond which the loss is linear, "
                f"{label.error_unit}",
                json_schema_extra={"resume": "applied"},
            ),
        )
    return fields


# The keys come from the label registry, so a new label needs no change here.
LabelNoise = create_model(
    "LabelNoise", __base__=Settings, __doc__="Noise of a level of theory.", **_noise_fields()
)
LabelTerms = create_model(
    "LabelTerms", __base__=Settings, __doc__="Weights and Huber widths.", **_term_fields()
)


class LossConfig(LabelTerms):  # type: ignore[valid-type, misc]  # made from the registry
    """Weights and Huber widths of the terms, and the noise by which errors are divided.

    Beyond the width, the loss grows linearly instead of quadratically with the error. If errors are
    divided by a noise, the width has no unit and is a multiple of the noise.
    """

    final_energy: float | None = Field(
        default=None,
        gt=0,
        description="the weight of the energy term at the end, approached by the same factor in "
        "every step; without it the weight is constant",
        json_schema_extra={"resume": "applied"},
    )
    noise: dict[str, LabelNoise] = Field(  # type: ignore[valid-type]
        default={},
        description="level of theory -> noise that its errors are divided by",
        json_schema_extra={"resume": "refused"},  # learned noise started from it
    )
    learn_noise: bool = Field(
        default=False,
        description="learn the noise of each level, starting from `noise` or from 1",
        json_schema_extra={"resume": "not_from_off"},  # the checkpoint has no learned noise
    )

    @model_validator(mode="after")
    def _has_a_weight_to_change(self) -> Self:
        if self.final_energy and not self.energy:
            raise ValueError(
                "loss.final_energy multiplies loss.energy, which is 0: set that above 0, or leave "
                "loss.final_energy out"
            )
        return self

    def at(self, progress: float) -> LossConfig:
        """The config with the weights at `progress`, the share of steps done, from 0 to 1."""
        if self.final_energy is None:
            return self
        energy = self.energy * (self.final_energy / self.energy) ** progress
        return self.model_copy(update={"energy": energy})


def label_counts(batch: Batch) -> Tensor:
    """Numbers of labelled components (L,), float64. Components of atoms count by atom weight."""
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
    """The contribution of a batch to the loss of the step, a scalar.

    counts: (L,) sum of `label_counts` over the whole step.
    noise: (H, L) noise of each label at each level of theory, in the unit of the label's error.
    """
    assert batch.atom_weight is not None
    dtype = batch.atom_weight.dtype
    counts = counts.clamp(min=1.0).to(batch.atom_weight)
    terms = []
    for index, (name, label) in enumerate(LABELS.items()):
        # subtracted in the label's dtype, because total energies are large and errors are small
        error = prediction.labels[name] - batch.labels[name]
        if label.extensive:
            error = error / _rows(batch.atoms_per_structure, error)
        error = error.to(dtype)

        scale = None
        if noise is not None:
            scale = noise[batch.head, index]  # (S,)
            if label.per == "atom":
                scale = scale[batch.structure_index]  # (N,)
            scale = _rows(scale, error)
        huber_sum = _huber_sum(
            error,
            labelled=torch.isfinite(batch.labels[name]),
            width=getattr(config, f"{name}_width"),
            noise=scale,
            weight=_rows(batch.atom_weight, error) if label.per == "atom" else None,
        )
        terms.append(getattr(config, name) * huber_sum / counts[index])

    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values (R,) to (R, 1, ...), for broadcasting against the rows of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _huber_sum(
    error: Tensor,
    labelled: Tensor,
    width: float,
    noise: Tensor | None,
    weight: Tensor | None = None,
) -> Tensor:
    """Sum of Huber losses of labelled entries, divided by the width. Large errors have slope 1."""
    # masked by labels alone, because predictions that are not finite must not be hidden
    error = torch.where(labelled, error, 0.0)
    if noise is not None:
        error = error / noise
    values = huber_loss(error, torch.zeros_like(error), reduction="none", delta=width) / width
    if noise is not None and noise.requires_grad:
        values = values + torch.where(labelled, noise.log(), 0.0)
    if weight is not None:
        values = values * weight
    return values.sum()
