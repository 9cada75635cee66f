"""Train chosen parameters on a few structures, with the loop of pretraining.

A strategy (`strategy.py`) chooses the parameters. `keep_best.py` decides which step is kept and
when to stop.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ...core.rich_console import Console
from ...data_pipelines.convert.convert import ConvertConfig, write_data_set
from ...data_pipelines.stream.collection import Collection
from ...data_pipelines.stream.mixture import MixingConfig
from ...data_pipelines.stream.training_stream import TrainingStream
from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from ...pretrain.callbacks.callback import Callback
from ...pretrain.callbacks.metrics import ProgressBar
from ...pretrain.errors import TrainingError
from ...pretrain.loop.engine import DeepSpeedEngine
from ...pretrain.loop.optimizer import OptimizerConfig
from ...pretrain.loop.schedule import Schedule, ScheduleConfig
from ...pretrain.loop.train_module import TrainModule
from ...pretrain.loop.trainer import Trainer
from ..safety.guard import HeldOut
from .config import GradientConfig
from .keep_best import KeepBest
from .replay import Replay


MOST_WARMUP_STEPS = 20


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at `rate` times the learning rate."""

    parameters: list[nn.Parameter]
    rate: float = 1.0


@dataclass(frozen=True)
class GradientReport:
    """The outcome of a training."""

    steps: int
    best_step: int
    """The step whose weights were kept; 0 for the start."""
    seconds: float
    interrupted: bool
    """Whether a signal ended the training."""
    share: float = 1.0
    """How far the final weights are on the way from the start to the best step, from 0 to 1."""


def train_parameters(
    potential: Potential,
    groups: list[ParameterGroup],
    learning_rate: float,
    train: list[Structure],
    held_out: HeldOut | None,
    config: GradientConfig,
    *,
    replay: Replay | None,
    seed: int,
    quiet: bool,
) -> GradientReport:
    """Train the parameters of `groups` in place on the structures `train` and on `replay`.

    Raises TrainingError if the training cannot continue.
    """
    started = time.perf_counter()
    # AdamW, because the default rates and steps were measured with it (docs/decisions/0009)
    optimizer = OptimizerConfig(
        name="adamw", learning_rate=learning_rate, clip_norm=config.clip_norm
    )
    warmup_steps = min(MOST_WARMUP_STEPS, config.steps // 10)
    schedule = Schedule(learning_rate, ScheduleConfig(warmup_steps=warmup_steps))
    # No weight decay: it would also change the weights of heads and elements that are not in the
    # data.
    optimizer_groups = [
        {"params": group.parameters, "rate": group.rate, "weight_decay": 0.0} for group in groups
    ]
    train_module = TrainModule(potential, config.loss)
    engine = DeepSpeedEngine(train_module, optimizer, groups=optimizer_groups)

    best = KeepBest(potential, held_out, config)
    progress = ProgressBar(Console(quiet=quiet), config.steps, 0)
    callbacks: list[Callback] = [best, progress]
    with tempfile.TemporaryDirectory() as folder:
        stream = _stream(Path(folder), train, replay, potential, config, seed)
        trainer = Trainer(engine, stream, schedule, config.steps, callbacks)
        try:
            finished = trainer.fit()
        except TrainingError as error:
            # the loop's own remedies name settings of pretraining
            error.remedy = "lower gradient.learning_rate, or look at the labels of the structures"
            raise

    return GradientReport(
        steps=trainer.step,
        best_step=best.best_step if held_out else trainer.step,
        seconds=time.perf_counter() - started,
        interrupted=not finished and not best.stopped,
        share=best.share,
    )


def _stream(
    folder: Path,
    train: list[Structure],
    replay: Replay | None,
    potential: Potential,
    config: GradientConfig,
    seed: int,
) -> TrainingStream:
    """A pretraining stream over the structures, which are written into `folder` as data sets."""
    parts = {"target": train}
    shares = {}
    if replay is not None:
        parts["replay"] = replay.structures
        shares = {"target": 1 - replay.share, "replay": replay.share}

    for name, structures in parts.items():
        origin = {"file": name, "sha256": ""}
        for_training = (replace(structure, split="train") for structure in structures)
        write_data_set(for_training, folder / name, origin, ConvertConfig())

    return Collection([str(folder / name) for name in parts]).stream(
        config.stream.model_copy(update={"seed": seed}),
        MixingConfig(shares=shares),
        cutoff=potential.config.cutoff,
        levels_of_theory=list(potential.config.levels_of_theory),
        rank=0,
        world_size=1,
    )
