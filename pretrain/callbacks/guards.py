"""Guards that stop or roll back a failing run: hung rank, dead readout, loss spike."""

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
VANISHED = 1e-6  # relative to the median gradient norm

RECENT = 5  # number of latest losses, whose median is compared ...
BEFORE = 100  # ... with the median of this many losses before them
FEWEST = 25  # number of losses needed for the first comparison
MOST_ROLLBACKS = 3


class GuardConfig(Settings):
    """When a run is stopped or rolled back."""

    hang_minutes: float = Field(
        default=30.0,
        ge=0,
        # about two years; larger values overflow in faulthandler
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
    """Ends this rank if it makes no step for too long, and writes its stacks to hang-rank-N.txt.

    Python's faulthandler uses a separate C thread, so it also ends a process that hangs inside a
    library. The launcher then ends the other ranks, and the batch script resumes the run.
    """

    def __init__(self, folder: Path, rank: int, minutes: float) -> None:
        self.seconds = 60.0 * minutes
        self._path = folder / f"hang-rank-{rank}.txt"
        self._file: IO[str] | None = None
        self._rank = rank

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the rank inside the block. Every step restarts the timer."""
        if not self.seconds:
            yield
            return

        # opened in advance, because a hanging rank can no longer open files
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
            # a remaining file means that this rank hung
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)

    def on_report(self, loop: Loop, report: StepReport) -> None:
        # restarted after the validation, which may take as long as many steps
        if self._file is not None:
            self._arm()

    def _arm(self) -> None:
        assert self._file is not None
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)


class CollapseGuard(Callback):
    """Stops the run if the readout is dead or gradients have vanished.

    The readout is dead if, over 20 steps, the inputs of all its SiLU units are below -10 for all
    atoms on all ranks. SiLU and its slope are then practically zero, and training cannot recover.
    Gradients have vanished if their norm stays below 1e-6 of its median for 20 steps.
    """

    def __init__(self, potential: Potential) -> None:
        self._highest: Tensor | None = None  # (d,), over all atoms since the last check
        self._norms: deque[float] = deque(maxlen=500)
        self._vanished = 0
        self._hook = potential.register_forward_hook(self._look_at_prediction)

    def _look_at_prediction(
        self, potential: nn.Module, inputs: Any, prediction: Prediction
    ) -> None:
        """Record the largest value of each hidden unit of the readout in training steps."""
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
        """Check the gradient norm. It is equal on all ranks, so all of them stop together."""
        if report.gradient_norm is None:
            return
        enough = len(self._norms) >= LOOK_EVERY
        # vanished norms are not included in the median that they are compared with
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
    """Rolls the run back to the newest checkpoint if the loss jumps, and continues with other data.

    In a jump, the median of the last 5 losses exceeds `factor` times the median of the 100 losses
    before. Weights, optimizer and averages are rolled back, but not the stream: PaLM also skipped
    the data around a spike (Chowdhery et al., 2022, section 5.1). After three rollbacks in one run,
    the next jump raises TrainingError.
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

        # medians, because a single bad batch is no reason to roll back
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
            # Before the first checkpoint, a rollback is impossible. A run that was resumed with new
            # heads does not fit its earlier checkpoints.
            return
        loop.load_tensors(loaded.tensors)
        self.times += 1
        # with the old losses, the next steps would look like another jump
        self.losses.clear()
        report.note = (
            f"loss jumped to {report.loss:.4g}: weights set back to those of step {loaded.step}"
        )

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "times": self.times}

    def load_state(self, state: dict[str, Any]) -> None:
        self.losses.extend(state["losses"])
        self.times = state["times"]
