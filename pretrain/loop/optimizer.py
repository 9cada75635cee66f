"""The optimizer and its parameter groups, with weight decay."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential
from .soap import Soap


class OptimizerConfig(Settings):
    """The optimizer, its peak learning rate and its limits."""

    name: Literal["soap", "adamw"] = Field(
        default="soap",
        description="soap learns more from a step; ZeRO 1 and 2 need adamw",
        # the states of the two optimizers are incompatible
        json_schema_extra={"resume": "refused"},
    )
    learning_rate: float = Field(
        default=4e-3,
        gt=0,
        description="peak, reached after the warm-up",
        json_schema_extra={"resume": "applied"},
    )
    weight_decay: float = Field(
        default=1e-4,
        ge=0,
        description="of matrices; embeddings, biases and the readout have none",
        json_schema_extra={"resume": "applied"},
    )
    clip_norm: float = Field(
        default=10.0,
        gt=0,
        description="longer gradients are scaled down to this norm",
        json_schema_extra={"resume": "applied"},
    )


def new_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Create the optimizer that the config names, for parameter groups."""
    if config.name == "soap":
        return Soap(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def parameter_groups(potential: Potential, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by `Potential.parameter_roles`.

    SOAP treats the first group as matrices. The last group has no weight decay. Frozen parameters
    are in no group.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "table": [], "vector": []}
    roles = potential.parameter_roles()
    for name, parameter in potential.named_parameters():
        if parameter.requires_grad:
            groups[roles[name]].append(parameter)
    return [
        {"params": groups["matrix"], "weight_decay": config.weight_decay, "matrices": True},
        {"params": groups["table"], "weight_decay": config.weight_decay},
        {"params": groups["vector"], "weight_decay": 0.0},
    ]
