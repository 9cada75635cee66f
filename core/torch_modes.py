"""What a caller has set in torch for the whole thread, put aside while we compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def own_modes() -> Iterator[None]:
    """Without the caller's inference mode, autocast and default device, which are back afterwards.

    Tensors made in inference mode cannot be differentiated, which forces need. Autocast would round
    products to bfloat16. A default device would put half of a calculation elsewhere. Nothing that
    other threads see is changed. Use it as a decorator: `@own_modes()`.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        # only if it is needed: a device as context costs a Python call for every operator
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        yield
