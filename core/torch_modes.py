"""Shield computations from thread-wide torch modes that a caller may have set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def own_modes() -> Iterator[None]:
    """Disable the caller's inference mode, autocast and default device during the block.

    Forces need differentiation, which is not possible for tensors created in inference mode.
    Autocast would round products to bfloat16. A default device would move part of a calculation to
    another device. Other threads are not affected. It can also be used as a decorator:
    `@own_modes()`.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        # only if needed, because a device context costs a Python call for every operator
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        yield
