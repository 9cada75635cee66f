"""Gradient strategies: which parameters learn, at what rate, and when to stop. The loop is that of pretraining."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from ...core.settings import Settings
from ...data_pipelines.convert.convert import ConvertConfig, write_data_set
from ...data_pipelines.stream.collection import Collection
from ...data_pipelines.stream.mixture import MixingConfig
from ...data_pipelines.stream.stream import StreamConfig
from ...data_pipelines.structure import Structure
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.weights_aside import (
    copied_weights,
    interpolated,
    put_weights,
    weights_aside,
)
from ...pretrain.callbacks.callback import Callback
from ...pretrain.callbacks.metrics import ProgressBar
from ...pretrain.checkpoints.checkpoints import seed_everything
from ...pretrain.loop.engine import DeepSpeedEngine, EngineConfig
from ...pretrain.loop.loss import LossConfig
from ...pretrain.loop.noise import noise_of
from ...pretrain.loop.trainer import StepReport, Trainer
from ..safety.guard import SHARES, HeldOut
from .lora import add_adapters, merge_adapters


GradientStrategy = Literal["readout", "lora", "full", "new-element"]
MANY, FEW_STEPS, MANY_STEPS = (
    100,
    600,
    1800,
)  # structures, and steps for fewer than them and for more
CHOOSING = 16  # held-out structures; fewer choose no step, as an early one fits them by chance (docs/decisions/0009)


class GradientConfig(Settings):
    """Length, rates and batches of a gradient strategy."""

    max_steps: int | None = Field(
        default=None,
        gt=0,
        description="optimizer steps at most; if not given 600, or 1,800 for 100 structures or more",
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="if not given 0.005; for full 0.002, and 0.0005 with replay"
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="rate of a layer over that of the one above it"
    )
    rank: int = Field(default=4, gt=0, description="of the adapters of lora")
    evaluate_every: int = Field(
        default=25, gt=0, description="steps between looks at the validation structures"
    )
    patience: int = Field(
        default=4, gt=0, description="looks of the second half without a better one, then stop"
    )
    clip_norm: float = Field(default=10.0, gt=0)
    loss: LossConfig = LossConfig()
    stream: StreamConfig = StreamConfig()

    @property
    def steps(self) -> int:
        """The number of steps given, or that for few structures."""
        return self.max_steps or FEW_STEPS

    def for_structures(self, number: int) -> GradientConfig:
        """With the number of steps for so many structures, if none is given (docs/decisions/0009)."""
        return self.model_copy(
            update={"max_steps": self.max_steps or (MANY_STEPS if number >= MANY else FEW_STEPS)}
        )

    def rate(self, strategy: GradientStrategy, *, replay: bool) -> float:
        """The learning rate: the one given, or what measured best (docs/decisions/0009)."""
        return self.learning_rate or ((5e-4 if replay else 2e-3) if strategy == "full" else 5e-3)


@dataclass(frozen=True)
class GradientReport:
    """Steps taken and the one whose weights were kept, with the share of the way to them; 0 is the start.

    `interrupted`: by a signal.
    """

    steps: int
    best_step: int
    seconds: float
    interrupted: bool
    share: float = 1.0


def train_gradient(
    potential: Potential,
    strategy: GradientStrategy,
    train: list[Structure],
    held_out: HeldOut | None,
    config: GradientConfig,
    *,
    new_elements: list[int],
    replay: tuple[list[Structure], float] | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> GradientReport:
    """Train a potential in place on `train`, and on a share of `replay`; of all steps the best by `held_out` is kept
    (`KeepBest`).

    Without held-out structures the last step's weights are kept. Raises ValueError for new-element without any.
    """
    seed_everything(seed)
    started, device = time.perf_counter(), next(potential.parameters()).device
    # no weight decay: it would also change the weights of heads and elements that the data do not hold
    groups = [
        group | {"weight_decay": 0.0}
        for group in _groups(potential, strategy, config, new_elements)
    ]
    embedding = potential.backbone.embedding.weight
    hook = embedding.register_hook(_only_rows(new_elements)) if strategy == "new-element" else None
    engine_config = EngineConfig(
        optimizer="adamw",  # rates and steps were measured with it (docs/decisions/0009)
        learning_rate=config.rate(strategy, replay=replay is not None),
        warmup_steps=min(20, config.steps // 10),
        clip_norm=config.clip_norm,
    )
    noise = noise_of(config.loss, list(potential.config.levels_of_theory))
    engine = DeepSpeedEngine(potential, engine_config, groups, noise)
    best = KeepBest(potential, held_out, config)
    with tempfile.TemporaryDirectory() as folder:
        stream = _stream(Path(folder), train, replay, potential, config, seed)
        callbacks: list[Callback] = [best, ProgressBar(Console(quiet=quiet), config.steps, 0)]
        trainer = Trainer(engine, stream, config.loss, engine_config, config.steps, callbacks)
        finished = trainer.fit()
    if hook:
        hook.remove()
    merge_adapters(potential)
    potential.repulsion.requires_grad_(potential.config.repulsion)
    potential.to(device).eval()
    kept, seconds = best.best_step if held_out else trainer.step, time.perf_counter() - started
    return GradientReport(
        trainer.step, kept, seconds, not finished and not best.stopped, best.share
    )


class KeepBest(Callback):
    """Scores the weights now and then, gives back the best at the end, and stops when they do not get better.

    Fewer than CHOOSING held-out structures only say yes or no: the last weights are kept if they are better than the
    start, and training stops early if they stay worse. When none is better than the start, because one kind of error
    rises while the other falls, say, those between the start and the least bad are tried (weight-space interpolation:
    Wortsman et al., arXiv:2109.01903).
    """

    def __init__(
        self, potential: Potential, held_out: HeldOut | None, config: GradientConfig
    ) -> None:
        self.potential, self.held_out, self.config = potential, held_out, config
        self.best_step, self.share, self.stopped, self._waited = 0, 1.0, False, 0
        if held_out:
            self._start = copied_weights(potential, trainable=True)
            self._start_score = held_out.score(potential)
            self._best = self._start
            self._rank = (True, math.inf)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        last = report.step == self.config.steps
        if not self.held_out or (report.step % self.config.evaluate_every and not last):
            return
        rank, few = self.held_out.rank(self.potential), len(self.held_out.valid) < CHOOSING
        self.potential.train()
        better, above = rank < self._rank, rank[0]
        if better or (few and last and not above):
            self._rank = rank
            self._best = copied_weights(self.potential, trainable=True)
            self.best_step = report.step
        if not above and (better or few):
            self._waited = 0
        elif 2 * report.step > self.config.steps:  # at the rates of before, errors come and go
            self._waited += 1
        if self._waited >= self.config.patience and not last:
            self.stopped, trainer.stop.by = True, "early stopping"

    def on_end(self, trainer: Trainer) -> None:
        if self.held_out:
            self.share = self._best_share(self.held_out)
            if self.share == 0.0:
                self.best_step = 0
            put_weights(self.potential, interpolated(self._start, self._best, self.share))

    def _best_share(self, held_out: HeldOut) -> float:
        """Of the way from the start to the best step: the first share that is better than the start."""
        for share in SHARES:
            tried = interpolated(self._start, self._best, share)
            with weights_aside(self.potential, tried, trainable=True):
                if held_out.score(self.potential) < self._start_score:
                    return share
        return 0.0


def _groups(
    potential: Potential,
    strategy: GradientStrategy,
    config: GradientConfig,
    new_elements: list[int],
) -> list[dict[str, Any]]:
    """Freeze what does not learn; what does, in groups with their rates."""
    potential.requires_grad_(False)
    if strategy == "lora":
        parameters: list[nn.Parameter] = add_adapters(potential, config.rank)
        readout = [p.requires_grad_() for p in potential.readout.parameters()]
        return [{"params": parameters, "rate": 1.0}, {"params": readout, "rate": 1.0}]
    if strategy == "readout":
        return [{"params": [p.requires_grad_() for p in potential.readout.parameters()]}]
    if strategy == "new-element":
        if not new_elements:
            raise ValueError(
                "strategy=new-element: the data hold no element that is new to the model: take another"
            )
        return [{"params": [potential.backbone.embedding.weight.requires_grad_()]}]
    groups = []
    for rate, parameters in _by_rate(potential, config.layer_decay):
        groups.append({"params": [p.requires_grad_() for p in parameters], "rate": rate})
    return groups


def _by_rate(potential: Potential, decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """All parameters from the readout down, each layer slower than the one above."""
    backbone = potential.backbone
    depth = len(backbone.layers)
    bottom = [*backbone.embedding.parameters(), *backbone.start.parameters()]
    layers = [
        (decay ** (depth - k), list(layer.parameters())) for k, layer in enumerate(backbone.layers)
    ]
    radii = list(potential.repulsion.parameters()) if potential.config.repulsion else []
    return [
        (1.0, list(potential.readout.parameters())),
        *layers,
        (decay ** (depth + 1), [*bottom, *radii]),
    ]


def _only_rows(rows: list[int]) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[rows] = gradient[rows]
        return kept

    return hook


def _stream(
    folder: Path,
    train: list[Structure],
    replay: tuple[list[Structure], float] | None,
    potential: Potential,
    config: GradientConfig,
    seed: int,
) -> Any:
    """The training stream over the structures, written as data sets, so that batches come as in pretraining."""
    sets = {"target": train} | ({"replay": replay[0]} if replay else {})
    for name, structures in sets.items():
        origin = {"file": name, "sha256": ""}
        write_data_set(
            (replace(s, split="train") for s in structures), folder / name, origin, ConvertConfig()
        )
    shares = {"target": 1 - replay[1], "replay": replay[1]} if replay else {}
    return Collection([str(folder / name) for name in sets]).stream(
        config.stream.model_copy(update={"seed": seed}),
        MixingConfig(shares=shares),
        cutoff=potential.config.cutoff,
        levels_of_theory=list(potential.config.levels_of_theory),
        rank=0,
        world_size=1,
    )
