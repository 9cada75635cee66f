"""What ends a run that would burn hours for nothing: a hung rank, a dead readout, vanished gradients."""

from __future__ import annotations

import faulthandler
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from ...core.settings import Settings
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.prediction import Prediction
from ..checkpoints.checkpoints import NoCheckpointError, load_checkpoint
from ..loop.trainer import TrainingError
from .callback import Callback


if TYPE_CHECKING:
    from ..loop.trainer import StepReport, Trainer
    from .average import WeightAverage


DEAD = -10.0  # silu(-10) and its slope are below 5e-4 of what they are at 1
LOOK_EVERY = 20  # steps
VANISHED = 1e-6  # of the median gradient norm


class GuardConfig(Settings):
    """When a run is given up or set back."""

    hang_minutes: float = Field(
        default=30.0, ge=0, description="without a step a rank is hung and ended; 0 is off"
    )
    spike: float = Field(
        default=0.0, ge=0, description="loss over its median that sets the run back; 0 is off"
    )


class Watchdog(Callback):
    """Ends this rank, with the stacks of all its threads in hang-rank-N.txt, when no step ends for so long.

    Python's faulthandler counts in a thread of its own in C: it also ends a process that hangs inside a library. The
    launcher then ends the other ranks, and the batch script resumes.
    """

    def __init__(self, folder: Path, rank: int, minutes: float) -> None:
        self.seconds = 60.0 * minutes
        self._path = folder / f"hang-rank-{rank}.txt"
        self._file: IO[str] | None = None
        self._rank = rank

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts from here on, anew after every step."""
        if not self.seconds:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self._file.write(
            f"Stacks below mean: rank {self._rank} made no step for {self.seconds:.0f} s and was ended (watching since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}).\n"
        )
        self._file.flush()
        self._arm()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if self._file is not None:
            self._arm()

    def _arm(self) -> None:
        assert self._file is not None
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)


class CollapseGuard(Callback):
    """Looks every 20 steps whether the readout still hears anything, and whether gradients are still there.

    Dead readout: all inputs of all its features were below -10 for all atoms of all ranks, so SiLU and its slope are
    zero and no step can bring them back. Vanished: the gradient norm stayed below 1e-6 of its median.
    """

    def __init__(self, potential: Potential) -> None:
        self._highest: Tensor | None = None  # (d,)
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
        if self._highest is None:
            self._highest = highest
        else:
            self._highest = torch.maximum(self._highest, highest)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._look_at_norm(report)
        if report.step % LOOK_EVERY or self._highest is None:
            return
        highest = self._highest.float().cpu()
        self._highest = None
        if trainer.engine.world_size > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        if bool((highest < DEAD).all()):
            raise TrainingError(
                f"step {report.step}: the readout is dead: the inputs of its {len(highest)} features were below "
                f"{DEAD:g} for every atom of the last {LOOK_EVERY} steps, so energies are constant and no gradient "
                "passes; start again with a lower engine.learning_rate or a longer engine.warmup_steps"
            )

    def _look_at_norm(self, report: StepReport) -> None:
        """The norm is the same on all ranks, so all give up together."""
        if report.gradient_norm is None:
            return
        if len(self._norms) >= LOOK_EVERY and report.gradient_norm < VANISHED * median(self._norms):
            self._vanished += 1
        else:
            self._vanished = 0
            self._norms.append(report.gradient_norm)
        if self._vanished >= LOOK_EVERY:
            raise TrainingError(
                f"step {report.step}: the loss has collapsed at {report.loss:.4g}: for {LOOK_EVERY} steps the gradient "
                f"norm was below {VANISHED:g} of its median {median(self._norms):.3g}; start again with a lower "
                "engine.learning_rate, or look at the labels"
            )

    def close(self) -> None:
        self._hook.remove()


class SpikeRollback(Callback):
    """Sets weights and optimizer back to the newest checkpoint when the loss jumps, and goes on with the data after it.

    A jump: the median of the last 5 losses is above `factor` times that of the 100 before. Skipping the data around a
    spike is what PaLM did (Chowdhery et al., 2022, section 5.1). After three times in one run it gives up.
    """

    def __init__(self, folder: Path, factor: float, average: WeightAverage | None) -> None:
        self.folder, self.factor, self.average = folder, factor, average
        self.losses: deque[float] = deque(maxlen=105)
        self.times = 0

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.bad_structures:
            return
        self.losses.append(report.loss)
        values = list(self.losses)
        if len(values) < 25 or median(values[-5:]) <= self.factor * median(values[:-5]):
            return
        if self.times == 3:
            raise TrainingError(
                f"step {report.step}: the loss jumped to {report.loss:.4g} from {median(values[:-5]):.4g}, and the run "
                "was set back three times already: lower engine.learning_rate"
            )
        try:
            loaded = load_checkpoint(self.folder, trainer.engine)
        except NoCheckpointError:
            return
        if self.average is not None:
            self.average.load_tensors(loaded.average)
        self.times += 1
        self.losses.clear()
        report.note = (
            f"loss jumped to {report.loss:.4g}: weights set back to those of step {loaded.step}"
        )

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "times": self.times}

    def load_state(self, state: dict[str, Any]) -> None:
        self.losses.extend(state.get("losses", []))
        self.times = state.get("times", 0)
