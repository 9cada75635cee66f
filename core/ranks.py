"""How a process finds its device and the other ranks: under python, torchrun, deepspeed or srun."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import MutableMapping
from typing import Any

import torch
import torch.distributed as dist

from .errors import EvenfieldError
from .freed_memory import keep_freed_memory


# DeepSpeed changes defaults from one release to the next.
FIRST_TESTED = (0, 19, 8)
FIRST_UNTESTED = (0, 20)


def local_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # a launcher may show each rank only its own GPU
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def start_distributed() -> Any:
    """Import DeepSpeed and join the process group; a plain `python` is a world of one.

    torchrun and deepspeed set RANK, WORLD_SIZE and so on. srun sets SLURM_*, and the batch script
    MASTER_ADDR. Returns the deepspeed module.
    """
    check_version(importlib.metadata.version("deepspeed"))
    keep_freed_memory()
    has_gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if has_gpu else "cpu")
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    # an extension for inference on CPUs, which DeepSpeed would compile now
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    if not dist.is_initialized():
        # counts of labels are summed on the CPU, also where tensors are on GPUs
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        adopt_slurm_environment(os.environ)
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            # one process: a store in memory needs no port that another process may hold
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
            os.environ |= {
                "RANK": "0",
                "WORLD_SIZE": "1",
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "0",
            }
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed


def check_version(version: str) -> None:
    """Raise EvenfieldError for a DeepSpeed that has not passed the parity tests."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not FIRST_TESTED <= numbers < FIRST_UNTESTED:
        raise EvenfieldError(
            f"deepspeed {version} has not passed the parity tests",
            remedy="install 'deepspeed>=0.19.8,<0.20'",
        )


def adopt_slurm_environment(environment: MutableMapping[str, str]) -> None:
    """Set the variables that torch reads when srun started the ranks."""
    started_by_srun = int(environment.get("SLURM_NTASKS", "1")) > 1
    if started_by_srun and "RANK" not in environment:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
