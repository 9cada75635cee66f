"""The engine protocol and its DeepSpeed implementation: forward, backward, step, state on any number of ranks.

DeepSpeed 0.19 facts behind the settings: forces must be computed inside forward; clipping is always written
out, because its default changed; the optimizer is ours or torch's fused AdamW, which need no compiler; the C++
extension that `init_distributed` would build on CPU serves inference only and is opted out of.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self

import torch
import torch.distributed as dist
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ...core.ranks import local_device, start_distributed
from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.prediction import Prediction
from .noise import NoiseScales
from .optimizer_state import load_whole_state, whole_state
from .soap import Soap


class EngineConfig(Settings):
    """Optimizer and parallelism."""

    zero_stage: Literal[0, 1, 2] = Field(
        default=0, description="what ranks share out: nothing, state, gradients"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of matrix products; weights, sums and the optimizer stay float32",
    )
    compiled: bool = Field(
        default=False,
        description="torch.compile of the network: minutes at the start, then 1.3 times as fast",
    )
    optimizer: Literal["soap", "adamw"] = Field(
        default="soap",
        description="soap learns more from a step; adamw also where ZeRO 1 or 2 shares out its state",
    )
    accumulation: int = Field(
        default=1, gt=0, description="batches per rank (or lane of the stream) and step"
    )
    clip_norm: float = Field(default=10.0, gt=0, description="largest gradient norm")
    learning_rate: float = Field(default=4e-3, gt=0)
    final_learning_rate: float = Field(
        default=1e-5, ge=0, description="reached by a cosine at max_steps"
    )
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(
        default=1e-4, ge=0, description="on matrices; not on embeddings, biases, readout"
    )

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _not_three(cls, value: object) -> object:
        if value == 3:
            raise ValueError(
                "3 is refused: its hooks drop the weights between the energy's first and second derivative, which "
                "forces need; take 2, a potential is small enough"
            )
        return value

    @field_validator("precision", mode="before")
    @classmethod
    def _not_double(cls, value: object) -> object:
        if value == "float64":
            raise ValueError(
                "float64 is refused: DeepSpeed would keep float32 master weights without a word; energies are summed "
                "in float64 anyhow"
            )
        return value

    @model_validator(mode="after")
    def _matrices_stay_whole(self) -> Self:
        if self.zero_stage and self.optimizer == "soap":
            raise ValueError(
                f"zero_stage={self.zero_stage} cuts matrices into parts, which soap needs whole: set optimizer=adamw, "
                "or zero_stage=0, since a potential is small enough for every rank"
            )
        return self


class Engine(Protocol):
    """What the training loop needs of an engine."""

    rank: int
    world_size: int
    device: torch.device
    potential: Potential
    noise: NoiseScales | None

    def forward(self, batch: Batch) -> Prediction: ...
    def backward(self, loss: Tensor) -> None: ...
    def gradients_finite(self) -> bool: ...
    def discard(self) -> None: ...
    def step(self, learning_rate: float) -> float: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...


class DeepSpeedEngine:
    """One process or many, ZeRO 0, 1 or 2."""

    def __init__(
        self,
        potential: Potential,
        config: EngineConfig,
        groups: list[dict[str, Any]] | None = None,
        noise: NoiseScales | None = None,
    ) -> None:
        """`groups` of parameters, instead of `parameter_groups`; `rate` scales a group's learning rate.

        noise: of the labels; where it is learned, it is stepped, shared out and saved with the weights.
        """
        double = [name for name, p in potential.named_parameters() if p.dtype != torch.float32]
        if double:
            raise ValueError(
                f"{double[0]} is {potential.get_parameter(double[0]).dtype}, not torch.float32: DeepSpeed would train "
                "float32 copies without a word; convert the potential with .float()"
            )
        deepspeed = start_distributed()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = local_device()
        self.potential, self.config = potential.to(self.device), config
        self.noise = noise.to(self.device) if noise else None
        learned = {f"noise.{name}": p for name, p in noise.named_parameters()} if noise else {}
        self._parameters = dict(potential.named_parameters()) | learned
        self._names: dict[Tensor, str] = {
            p: name for name, p in self._parameters.items() if p.requires_grad
        }
        groups = (groups or parameter_groups(potential, config)) + (noise.groups() if noise else [])
        self._engine, *_ = deepspeed.initialize(
            model=_AtPrecision(self.potential, config.precision, self.noise),
            optimizer=new_optimizer(groups, config),
            config={
                "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it: our batches go by edges
                "gradient_accumulation_steps": 1,
                "managed_gradient_accumulation": False,  # the loop decides which batches make a step
                "gradient_allreduce_op": "sum",  # the loss is already normalised by global counts
                "gradient_clipping": config.clip_norm,
                "zero_optimization": {"stage": config.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        self._norm = 0.0
        self._engine.clip_fp32_gradients = (
            self._clip
        )  # of stage 0: DeepSpeed's own throws the norm away

    def forward(self, batch: Batch) -> Prediction:
        """Energy, forces and stress of a batch, ready to be differentiated again."""
        self._engine.train()
        return self._engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one batch, unscaled."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradients_finite(self) -> bool:
        """Whether all gradients that this rank holds are finite; a finite loss does not promise it."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        for partition in getattr(
            self._engine.optimizer, "all_grad_tensors", {}
        ).values():  # ZeRO 2 moves them there
            gradients += partition or []
        return not gradients or bool(
            torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()
        )

    def discard(self) -> None:
        """Drop the gradients of a step that must not be taken."""
        self._engine.zero_grad()
        self._engine.optimizer.zero_grad()
        for store in ("all_grad_tensors", "averaged_gradients"):
            getattr(self._engine.optimizer, store, {}).clear()

    def step(self, learning_rate: float) -> float:
        """Sum gradients over ranks, clip, update, clear; returns the norm that the gradients had before the clip."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate", 1.0)
        self._engine.step()
        return (
            self._norm
            if self.config.zero_stage == 0
            else float(self._engine.get_global_grad_norm())
        )

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name, on the CPU and free of ranks; all ranks call it, all get it."""
        weights = {
            f"weight/{name}": w.detach().cpu().clone() for name, w in self._tensors().items()
        }
        return weights | whole_state(self._engine.optimizer, self._names)

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave on any number of ranks, in any stage; ValueError if that learned no noise."""
        own = self._tensors()
        if any(f"weight/{name}" not in state for name in own if name.startswith("noise.")):
            raise ValueError("loss.learn_noise: the run to resume learned no noise: leave it false")
        for name, weight in own.items():
            weight.copy_(state[f"weight/{name}"])
        load_whole_state(self._engine.optimizer, self._names, state)

    def _clip(self) -> None:
        self._norm = float(
            nn.utils.clip_grad_norm_(self._parameters.values(), self.config.clip_norm)
        )

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds of potential and noise, by name."""
        return self.potential.state_dict() | {
            n: p for n, p in self._parameters.items() if n.startswith("noise.")
        }


class _AtPrecision(nn.Module):
    """A potential whose matrix products run in bfloat16 if asked to; its weights are float32 either way."""

    def __init__(self, potential: Potential, precision: str, noise: NoiseScales | None) -> None:
        super().__init__()
        self.potential, self.low = potential, precision == "bfloat16"
        self.noise = noise  # DeepSpeed sums the gradients of what its model holds

    def forward(self, batch: Batch) -> Prediction:
        with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=self.low):
            return self.potential(batch)


def new_optimizer(groups: list[dict[str, Any]], config: EngineConfig) -> torch.optim.Optimizer:
    """The optimizer that the config names."""
    if config.optimizer == "soap":
        return Soap(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def parameter_groups(potential: Potential, config: EngineConfig) -> list[dict[str, Any]]:
    """The trained parameters, grouped by the roles that the potential gives them.

    SOAP treats the first group as matrices. The last group has no weight decay.
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
