"""Save checkpoints during a run. `checkpoints/checkpoints.py` writes the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoints import CheckpointConfig, save_checkpoint
from ..loop.finite import refuse_infinite_weights
from .callback import Callback, Loop


class Checkpoints(Callback):
    """Saves every `config.every` steps and at the end, even if a signal stopped the run.

    A failed save is reported and retried at the next save. `problem` holds the last failure, or
    None after a successful save.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        tell: Callable[[str], None],
        about: dict[str, Any] | None = None,
    ) -> None:
        """`about` (settings and versions) is stored in the manifest of every checkpoint."""
        self.folder = folder
        self.config = config
        self.tell = tell
        self.about = about
        self.problem: str | None = None
        self._saved_step = -1

    def on_save(self, loop: Loop, *, last: bool) -> None:
        due = last or loop.step % self.config.every == 0
        if not due or loop.step == self._saved_step:
            return
        # otherwise older checkpoints would be pruned in favour of an unusable one
        refuse_infinite_weights(loop.engine.train_module, loop.step)
        self.problem = save_checkpoint(
            self.folder,
            loop.step,
            loop.engine,
            loop.state(),
            self.config.keep,
            loop.tensors(),
            self.about,
        )
        if self.problem is None:
            self._saved_step = loop.step
        else:
            self.tell(
                f"step {loop.step}: NOT saved: {self.problem}; "
                "the checkpoints before are as they were"
            )
