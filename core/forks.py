"""Make torch single-threaded in forked processes.

A fork copies the memory of a process, but only one of its threads. If torch has computed in
parallel before, a child would wait forever for threads that it does not have. PyTorch's data
loaders also limit their workers to one thread.
"""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def survive_forks() -> None:
    """Make every forked child of this process use one torch thread from now on.

    Spawned children are not affected. Further calls do nothing.
    """
    # Windows cannot fork
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
