"""Find the device of a process and the other ranks, under python, torchrun, deepspeed or srun."""

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


# range of tested DeepSpeed versions; defaults change from one release to the next
FIRST_TESTED = (0, 19, 8)
FIRST_UNTESTED = (0, 20)


def local_device() -> torch.device:
    """The GPU of this rank, or the CPU if there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    # modulo, because a launcher may make only one GPU visible to each rank
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def start_distributed() -> Any:
    """Import DeepSpeed, join the process group, and return the deepspeed module.

    torchrun and deepspeed set RANK, WORLD_SIZE and so on. srun sets SLURM_*, and the batch script
    must set MASTER_ADDR. Plain `python` gives a group with a single rank. Raises EvenfieldError for
    an untested DeepSpeed version.
    """
    check_version(importlib.metadata.version("deepspeed"))
    keep_freed_memory()
    has_gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if has_gpu else "cpu")
    import deepspeed

    deepspeed.logger.setLevel("WARNING")
    # skip an extension for CPU inference, which DeepSpeed would compile at this point
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    if not dist.is_initialized():
        # gloo is needed even with GPUs, because label counts are summed on the CPU
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        adopt_slurm_environment(os.environ)
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            # a single process can use an in-memory store, which needs no network port
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
    """Raise EvenfieldError for a DeepSpeed version that has not passed the parity tests."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if not FIRST_TESTED <= numbers < FIRST_UNTESTED:
        raise EvenfieldError(
            f"deepspeed {version} has not passed the parity tests",
            remedy="install 'deepspeed>=0.19.8,<0.20'",
        )


def adopt_slurm_environment(environment: MutableMapping[str, str]) -> None:
    """Set the environment variables that torch reads, if srun started the ranks."""
    started_by_srun = int(environment.get("SLURM_NTASKS", "1")) > 1
    if started_by_srun and "RANK" not in environment:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
