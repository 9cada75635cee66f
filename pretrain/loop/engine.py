"""The engine: forward, backward, step and state of a train module on any number of ranks.

Facts about DeepSpeed 0.19 that explain the code:

- Forces must be computed inside `forward`.
- The default of gradient clipping changed between releases, so it is always set explicitly.
- The optimizer is evenfield's SOAP or torch's fused AdamW; neither needs a compiler.
- On a CPU, `init_distributed` would build a C++ extension that only inference needs, so the
  extension is switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from pydantic import Field, field_validator
from torch import Tensor, nn

from ...core.errors import EvenfieldError
from ...core.ranks import local_device, start_distributed
from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...model_zoo.potential.weights_aside import put_weights
from .optimizer import OptimizerConfig, new_optimizer, parameter_groups
from .optimizer_state import load_whole_state, state_of_shape, whole_state
from .train_module import TrainModule


Counts = Callable[[], Tensor]


class EngineConfig(Settings):
    """How ranks share optimizer state and gradients."""

    zero_stage: Literal[0, 1, 2] = Field(
        default=0,
        description="what ranks share out: 0 nothing, 1 optimizer state, 2 gradients too",
        json_schema_extra={"resume": "applied"},
    )

    @field_validator("zero_stage", mode="before")
    @classmethod
    def _not_three(cls, value: object) -> object:
        if value == 3:
            raise ValueError(
                "3 is refused: its hooks drop the weights between the first and the second "
                "derivative of the energy, which forces need; take 2, a potential is small enough"
            )
        return value


class Engine(Protocol):
    """The engine interface that the training loop needs; see `DeepSpeedEngine`."""

    rank: int
    world_size: int
    device: torch.device
    train_module: TrainModule

    def forward(self, batch: Batch, counts: Counts, progress: float = 0.0) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def gradients_finite(self) -> bool: ...
    def discard(self) -> None: ...
    def step(self, learning_rate: float) -> float: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...


class DeepSpeedEngine:
    """An engine for one or many processes, with ZeRO stage 0, 1 or 2."""

    def __init__(
        self,
        train_module: TrainModule,
        optimizer: OptimizerConfig = OptimizerConfig(),
        config: EngineConfig = EngineConfig(),
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        """Join the process group and move the train module to this rank's device.

        groups: parameter groups of the potential, by default those of `parameter_groups`. `rate` in
            a group scales its learning rate. Learned noise always has a separate group.

        Raises EvenfieldError for a potential that is not float32.
        """
        _refuse_double(train_module)
        # SOAP needs whole matrices, but ZeRO cuts them; PretrainConfig refuses the combination
        assert config.zero_stage == 0 or optimizer.name != "soap"
        deepspeed = start_distributed()
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = local_device()
        self.train_module = train_module.to(self.device)
        self.config = config

        self._clip_norm = optimizer.clip_norm
        self._parameters = list(train_module.parameters())
        self._names: dict[Tensor, str] = {
            parameter: name
            for name, parameter in train_module.named_parameters()
            if parameter.requires_grad
        }
        if groups is None:
            groups = parameter_groups(train_module.potential, optimizer)
        if train_module.noise is not None:
            groups = groups + train_module.noise.groups()
        self._engine, *_ = deepspeed.initialize(
            model=train_module,
            optimizer=new_optimizer(groups, optimizer),
            config={
                # DeepSpeed uses this only for bookkeeping; our batches are limited by edges
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # the loop decides which batches make a step
                "managed_gradient_accumulation": False,
                # the loss is already normalised by the counts of all ranks
                "gradient_allreduce_op": "sum",
                "gradient_clipping": optimizer.clip_norm,
                "zero_optimization": {"stage": config.zero_stage},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        # replaces DeepSpeed's clipping in stage 0, which does not keep the norm
        self._norm = 0.0
        self._engine.clip_fp32_gradients = self._clip

    def forward(self, batch: Batch, counts: Counts, progress: float = 0.0) -> Tensor:
        """Compute the loss of a batch for `backward`; see `TrainModule.forward`."""
        self._engine.train()
        return self._engine(batch, counts, progress)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one batch, unscaled."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradients_finite(self) -> bool:
        """Whether all gradients of this rank are finite. A finite loss does not imply this."""
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        # ZeRO 2 moves gradients out of the parameters
        partitions = getattr(self._engine.optimizer, "all_grad_tensors", {})
        for partition in partitions.values():
            gradients += partition or []
        if not gradients:
            return True
        # one read from the device for all gradients; an overflowing norm is as bad as a NaN
        norms = torch.stack(torch._foreach_norm(gradients))
        return bool(torch.isfinite(norms).all())

    def discard(self) -> None:
        """Drop the gradients of a step that must be skipped."""
        self._engine.zero_grad()
        self._engine.optimizer.zero_grad()
        # otherwise ZeRO would add its stored gradients to those of the next step
        for store in ("all_grad_tensors", "averaged_gradients"):
            getattr(self._engine.optimizer, store, {}).clear()

    def step(self, learning_rate: float) -> float:
        """Sum gradients over ranks, clip, update, clear; returns the norm before clipping."""
        # `rate` is a factor of the group, for learned noise and layer-wise learning rates
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate", 1.0)
        self._engine.step()
        if self.config.zero_stage == 0:
            return self._norm
        return float(self._engine.get_global_grad_norm())

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name, on the CPU and independent of ranks.

        All ranks must call this, and all get the whole state.
        """
        weights = {
            f"weight/{name}": weight.detach().cpu().clone()
            for name, weight in self.train_module.state_dict().items()
        }
        return weights | whole_state(self._engine.optimizer, self._names)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state`, from any number of ranks and any ZeRO stage.

        Raises ResumeError if a name or shape differs. Weights are changed only if all of them fit.
        """
        own = self.train_module.state_dict()
        saved = {}
        for name, weight in own.items():
            # shapes are checked, because a copy would broadcast one saved head to all heads
            saved[name] = state_of_shape(state, f"weight/{name}", weight.shape)
        put_weights(self.train_module, saved)
        load_whole_state(self._engine.optimizer, self._names, state)

    def _clip(self) -> None:
        self._norm = float(nn.utils.clip_grad_norm_(self._parameters, self._clip_norm))


def _refuse_double(train_module: TrainModule) -> None:
    for name, parameter in train_module.named_parameters():
        if parameter.dtype != torch.float32:
            raise EvenfieldError(
                f"{name} is {parameter.dtype}, not torch.float32: DeepSpeed would silently train "
                "float32 copies",
                remedy="convert the potential with .float()",
            )
