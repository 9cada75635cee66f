"""Guards end or set back a run that would waste hours: hung rank, dead readout, loss spike."""

from __future__ import annotations

import faulthandler
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.prediction import Prediction
from ..checkpoints.checkpoints import load_checkpoint
from ..errors import NoCheckpointError, ResumeError, TrainingError
from .callback import Callback, Loop, StepReport


DEAD = -10.0  # silu(-10) and its slope are below 5e-4 of what they are at 1
LOOK_EVERY = 20  # steps
VANISHED = 1e-6  # of the median gradient norm

RECENT = 5  # losses whose median is compared ...
BEFORE = 100  # ... with that of so many before them
FEWEST = 25  # losses before the first comparison
MOST_ROLLBACKS = 3


class GuardConfig(Settings):
    """When a run is given up or set back."""

    hang_minutes: float = Field(
        default=30.0,
        ge=0,
        # about two years; the clock of faulthandler overflows
        le=1e6,
        description="a rank that makes no step for so long is ended; 0 is off",
        json_schema_extra={"resume": "applied"},
    )
    spike: float = Field(
        default=0.0,
        ge=0,
        description="ratio of the loss to its median that sets the run back; 0 is off",
        json_schema_extra={"resume": "applied"},
    )


class Watchdog(Callback):
    """Ends this rank when it makes no step for too long, and leaves its stacks in hang-rank-N.txt.

    Python's faulthandler counts in a C thread of its own, so it also ends a process that hangs
    inside a library. The launcher then ends the other ranks, and the batch script resumes.
    """

    def __init__(self, folder: Path, rank: int, minutes: float) -> None:
        self.seconds = 60.0 * minutes
        self._path = folder / f"hang-rank-{rank}.txt"
        self._file: IO[str] | None = None
        self._rank = rank

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the time from here on; every step starts the count again."""
        if not self.seconds:
            yield
            return

        # Open before it is needed: a rank that hangs can open nothing any more.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(
            f"Rank {self._rank} made no step for {self.seconds:.0f} s and was ended "
            f"(watched since {since}). The stacks of its threads follow.\n"
        )
        self._file.flush()
        self._arm()
        try:
            yield
        finally:
            # A file that is left says that this rank hung.
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)

    def on_report(self, loop: Loop, report: StepReport) -> None:
        # after the validation, which may take as long as many steps
        if self._file is not None:
            self._arm()

    def _arm(self) -> None:
        assert self._file is not None
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)


class CollapseGuard(Callback):
    """Gives up when the readout is dead or the gradients have vanished; looks every 20 steps.

    Dead: the inputs of all features were below -10 for all atoms of all ranks. Then SiLU and its
    slope are zero, and no step can bring the readout back. Vanished: the gradient norm stayed below
    1e-6 of its median.
    """

    def __init__(self, potential: Potential) -> None:
        self._highest: Tensor | None = None  # (d,), over all atoms since the last look
        self._norms: deque[float] = deque(maxlen=500)
        self._vanished = 0
        self._hook = potential.register_forward_hook(self._look_at_prediction)

    def _look_at_prediction(
        self, potential: nn.Module, inputs: Any, prediction: Prediction
    ) -> None:
        """Note the largest value of each hidden feature of the readout in a training step."""
        hidden = prediction.hidden
        if hidden is None or not potential.training:
            return
        highest = hidden.amax(0)
        if self._highest is not None:
            highest = torch.maximum(self._highest, highest)
        self._highest = highest

    def on_guard(self, loop: Loop, report: StepReport) -> None:
        self._look_at_norm(report)
        if report.step % LOOK_EVERY or self._highest is None:
            return

        highest = self._highest.float().cpu()
        self._highest = None
        if loop.engine.world_size > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        if bool((highest < DEAD).all()):
            raise TrainingError(
                f"step {report.step}: the readout is dead: the inputs of its {len(highest)} "
                f"features were below {DEAD:g} for every atom of the last {LOOK_EVERY} steps, so "
                "energies are constant and no gradient passes",
                remedy="start again with a lower optimizer.learning_rate or a longer "
                "schedule.warmup_steps",
            )

    def _look_at_norm(self, report: StepReport) -> None:
        """The norm is the same on all ranks, so all of them give up together."""
        if report.gradient_norm is None:
            return
        enough = len(self._norms) >= LOOK_EVERY
        # Norms that vanished stay out of the median that they are compared with.
        if enough and report.gradient_norm < VANISHED * median(self._norms):
            self._vanished += 1
        else:
            self._vanished = 0
            self._norms.append(report.gradient_norm)
        if self._vanished >= LOOK_EVERY:
            raise TrainingError(
                f"step {report.step}: the loss has collapsed at {report.loss:.4g}: for "
                f"{LOOK_EVERY} steps the gradient norm was below {VANISHED:g} of its median "
                f"{median(self._norms):.3g}",
                remedy="start again with a lower optimizer.learning_rate, or look at the labels",
            )

    def close(self) -> None:
        self._hook.remove()


class SpikeRollback(Callback):
    """Sets the run back to the newest checkpoint when the loss jumps; continues with other data.

    A jump: the median of the last 5 losses is above `factor` times that of the 100 before. Weights,
    optimizer and averages are set back, the stream is not: PaLM, too, skipped the data around a
    spike (Chowdhery et al., 2022, section 5.1). After three rollbacks in one run it gives up.
    """

    name = "spike"

    def __init__(self, folder: Path, factor: float) -> None:
        self.folder = folder
        self.factor = factor
        self.losses: deque[float] = deque(maxlen=RECENT + BEFORE)
        self.times = 0

    def on_guard(self, loop: Loop, report: StepReport) -> None:
        if report.bad_structures:
            return
        self.losses.append(report.loss)
        values = list(self.losses)
        if len(values) < FEWEST:
            return

        # Medians, because one bad batch is no reason to go back.
        usual = median(values[:-RECENT])
        recent = median(values[-RECENT:])
        if recent <= self.factor * usual:
            return

        if self.times == MOST_ROLLBACKS:
            raise TrainingError(
                f"step {report.step}: the loss jumped to {report.loss:.4g} from {usual:.4g}, and "
                f"the run was set back {MOST_ROLLBACKS} times already",
                remedy="lower optimizer.learning_rate",
            )
        try:
            loaded = load_checkpoint(self.folder, loop.engine)
        except (NoCheckpointError, ResumeError):
            # Before the first checkpoint there is nothing to go back to. A run that continued with
            # new heads does not fit the checkpoints before.
            return
        loop.load_tensors(loaded.tensors)
        self.times += 1
        # Losses from before the jump would make the next steps look like one again.
        self.losses.clear()
        report.note = (
            f"loss jumped to {report.loss:.4g}: weights set back to those of step {loaded.step}"
        )

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "times": self.times}

    def load_state(self, state: dict[str, Any]) -> None:
        self.losses.extend(state["losses"])
        self.times = state["times"]
