"""The engine protocol and its DeepSpeed implementation: forward, backward, step, save, load on any number of ranks.

DeepSpeed 0.19 facts behind the settings: forces must be computed inside forward; clipping is always written
out, because its default changed; the optimizer is torch's AdamW, which needs no compiler; the C++ extension
that `init_distributed` would build on CPU serves inference only and is opted out of.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from ..data_pipelines.settings import Settings
from ..model_zoo.potential import Potential


class EngineConfig(Settings):
    """Optimizer and parallelism."""

    zero_stage: Literal[0, 1, 2] = Field(default=0, description="what ranks share out: nothing, state, gradients")
    accumulation: int = Field(default=1, gt=0, description="batches per rank and step")
    clip_norm: float = Field(default=10.0, gt=0, description="largest gradient norm")
    learning_rate: float = Field(default=2e-3, gt=0)
    final_learning_rate: float = Field(default=1e-5, ge=0, description="reached by a cosine at max_steps")
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0, description="on matrices; not on embeddings, biases, readout")


class Engine(Protocol):
    """What the training loop needs of an engine."""

    rank: int
    world_size: int
    device: torch.device

    def forward(self, batch: Batch) -> dict[str, Tensor]: ...
    def backward(self, loss: Tensor) -> None: ...
    def gradients_finite(self) -> bool: ...
    def discard(self) -> None: ...
    def step(self, learning_rate: float) -> None: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class DeepSpeedEngine:
    """One process or many, ZeRO 0, 1 or 2."""

    def __init__(self, potential: Potential, config: EngineConfig, groups: list[dict[str, Any]] | None = None) -> None:
        """`groups` of parameters for AdamW, instead of `parameter_groups`; `rate` scales a group's learning rate."""
        deepspeed = start_distributed()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = local_device()
        self.potential, self.config = potential.to(self.device), config
        self._engine, *_ = deepspeed.initialize(
            model=self.potential,
            optimizer=torch.optim.AdamW(groups or parameter_groups(potential, config), lr=config.learning_rate),
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

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Energy, forces and stress of a batch, ready to be differentiated again."""
        self._engine.train()
        return self._engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one batch, unscaled."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradients_finite(self) -> bool:
        """Whether all gradients that this rank holds are finite; a finite loss does not promise it."""
        gradients = [p.grad for p in self.potential.parameters() if p.grad is not None]
        for partition in getattr(self._engine.optimizer, "all_grad_tensors", {}).values():  # ZeRO 2 moves them there
            gradients += partition or []
        return not gradients or bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all())

    def discard(self) -> None:
        """Drop the gradients of a step that must not be taken."""
        self._engine.zero_grad()
        self._engine.optimizer.zero_grad()
        for store in ("all_grad_tensors", "averaged_gradients"):
            getattr(self._engine.optimizer, store, {}).clear()

    def step(self, learning_rate: float) -> None:
        """Sum gradients over ranks, clip, update, clear."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("rate", 1.0)
        self._engine.step()

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state of all ranks into a folder; ends with all ranks done."""
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, on the same number of ranks."""
        self._engine.load_checkpoint(str(folder.parent), tag=folder.name)


def parameter_groups(potential: Potential, config: EngineConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices only: not on element embeddings, biases or the linear readout."""
    named = [(name, p) for name, p in potential.named_parameters() if p.requires_grad]
    bare = {name for name, p in named if p.ndim < 2 or "embedding" in name or name == "readout.weight"}
    return [
        {"params": [p for name, p in named if name not in bare], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name in bare], "weight_decay": 0.0},
    ]


def local_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def start_distributed() -> Any:
    """Import DeepSpeed and join the process group; a plain `python` is a world of one.

    Understands torchrun and deepspeed (RANK, WORLD_SIZE, ...) and srun (SLURM_*, with MASTER_ADDR from the
    batch script). Returns the deepspeed module.
    """
    version = importlib.metadata.version("deepspeed")
    if not version.startswith("0.19."):
        raise RuntimeError(f"deepspeed {version} has not passed the parity tests: install 'deepspeed>=0.19.8,<0.20'")
    keep_freed_memory()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # counts are summed on the CPU
        adopt_slurm_environment(os.environ)
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:  # one process: a store in memory, no port to collide on
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: a CPU step allocates the same tensors again and again.

    Without this every tensor above 128 kB is a fresh mapping whose pages the kernel has to zero; measured, a
    training step is 1.1 to 1.3 times faster with it. Does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def adopt_slurm_environment(environment: Any) -> None:
    """Give torch the names that it looks for when srun started the ranks."""
    if "RANK" not in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
