"""Forked processes: torch computes in one thread there.

A fork copies the memory of a process, but only one of its threads. Once torch has computed in
parallel, a child waits forever for threads that it does not have. PyTorch's own loaders of data do
the same in their workers.
"""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def survive_forks() -> None:
    """From now on every forked child of this process computes in one thread; spawned ones do not.

    Calling it again does nothing.
    """
    # Windows cannot fork
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
