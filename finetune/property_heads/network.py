"""A separate network for a head: a copy of the model's network, trained on the labels of the head.

    1  the closed-form fit on features of the frozen network gives the initial linear weights
    2  the copy and the linear weights are trained together, with the loop of pretraining
    3  the step with the smallest loss on left-out structures is kept
    4  the copy replaces the model's network, for this head only

The energies of the model do not change. This helps because features that were trained on energies
contain little about charge flow and polarisation, and linear weights cannot add what is missing.

The loss of a structure is the mean Huber loss of its numbers, in units of the spread of the labels.
Structures are weighted as in the closed-form fit. Linear weights w are trained as u,

    w = w_0 + spread * u / size

where `size` is the root mean square of their columns, so that one learning rate fits all of them.

Shapes: S structures, N atoms, P columns of weights, Z elements.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, one_hot

from ...core.rich_console import Console
from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...model_zoo.heads.description import KINDS
from ...model_zoo.heads.expansion import Expansion
from ...model_zoo.heads.features import batch_of, edge_features
from ...model_zoo.heads.head import net_charge
from ...model_zoo.heads.rows import rows_of
from ...model_zoo.network.interface import CarriedFeatures
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.weights_aside import copied_weights, put_weights
from ...pretrain.callbacks.callback import Callback, Loop, StepReport
from ...pretrain.callbacks.metrics import ProgressBar
from ...pretrain.checkpoints.checkpoints import seed_everything
from ...pretrain.loop.engine import DeepSpeedEngine
from ...pretrain.loop.optimizer import OptimizerConfig, parameter_groups
from ...pretrain.loop.schedule import Schedule, ScheduleConfig
from ...pretrain.loop.train_module import TrainModule
from ...pretrain.loop.trainer import Trainer
from .config import HeadConfig
from .equivariant import shares_of
from .labels import LabelledFrames
from .weights import Weights


# in units of the spread of the labels; larger errors count linearly
HUBER_WIDTH = 0.05
# number of evaluations on the left-out structures in a training
NUM_LOOKS = 20
WARMUP_STEPS = 100
CLIP_NORM = 10.0
# Learning rate of the linear weights relative to that of the network. They may change faster,
# because every layer of the network changes the features that they multiply.
RATE_OF_WEIGHTS = 3.0
STRUCTURES_PER_LOOK = 64


@dataclass(frozen=True)
class Example:
    """One labelled structure of a training."""

    graph: Batch
    """The structure as a batch; its name is its index among the examples."""
    label: Tensor
    """Label in the shape of the prediction, float64, NaN if unknown. Charges are shifted to add up
    to zero."""
    places: Tensor
    """(N,) index of each atom's element among the elements of the fit"""
    share: float
    """Weight of the errors."""


@dataclass(frozen=True)
class Trained:
    """The result of training a network."""

    potential: Potential
    """A copy of the model's potential, with the trained network."""
    best_step: int
    """The step whose weights were kept; 0 for the frozen network."""
    losses: list[tuple[int, float]]
    """(step, loss on the left-out structures) of each evaluation; step 0 is the frozen network."""


class HeadTraining(TrainModule):
    """Network and linear weights of one head; maps a batch of examples to its loss."""

    def __init__(
        self,
        potential: Potential,
        start: Weights,
        examples: Sequence[Example],
        config: HeadConfig,
        spread: float,
    ) -> None:
        """`start` has the weights of the closed-form fit; `spread` is that of the labels."""
        super().__init__(potential)
        self.examples = examples
        self.config = config
        self.expansion = start.expansion
        self.num_elements = start.bias.shape[1]
        self.spread = spread
        self.start: Tensor
        self.size: Tensor
        weights = torch.from_numpy(np.concatenate([start.weight[0], start.bias[0]]))
        self.register_buffer("start", weights, persistent=False)
        self.register_buffer("size", torch.ones_like(weights), persistent=False)
        self.change = nn.Parameter(torch.zeros(len(weights), dtype=torch.float32))

    @torch.no_grad()
    def measure_size(self, places: Sequence[int]) -> None:
        """Set `size`, the root mean square of each column over the examples at `places`."""
        squares = torch.zeros_like(self.start)
        num_rows = 0
        for batch in self.batches(places):
            for rows, _ in self._rows(batch):
                flat = rows.reshape(-1, len(squares))
                squares += flat.square().sum(0)
                num_rows += len(flat)
        size = (squares / max(num_rows, 1)).sqrt()
        # columns of zeros are not trained
        self.size = torch.where(size > 1e-9 * size.max(), size, math.inf)

    def forward(self, batch: Batch, counts: Callable[[], Tensor], progress: float = 0.0) -> Tensor:
        """Mean loss of the structures of a batch; `counts` and `progress` are not used."""
        return self.losses_of(batch).mean().to(self.change.dtype)

    def losses_of(self, batch: Batch) -> Tensor:
        """Losses (S,) of the structures of a batch, float64."""
        weights = self.start + self.spread * self.change.double() / self.size
        losses = []
        for rows, example in self._rows(batch):
            label = example.label.to(rows.device)
            is_known = torch.isfinite(label)
            error = rows[is_known] @ weights - label[is_known]
            error = example.share * error / self.spread
            losses.append(huber_loss(error, torch.zeros_like(error), delta=HUBER_WIDTH))
        return torch.stack(losses) / HUBER_WIDTH

    def batches(self, places: Sequence[int]) -> Generator[Batch, None, None]:
        """The examples at the indices `places`, in batches of at most STRUCTURES_PER_LOOK."""
        for first in range(0, len(places), STRUCTURES_PER_LOOK):
            chosen = places[first : first + STRUCTURES_PER_LOOK]
            batch = Batch.join([self.examples[place].graph for place in chosen])
            yield batch.to(self.change.device)

    @torch.no_grad()
    def mean_loss(self, places: Sequence[int]) -> float:
        """Mean loss of the examples at the indices `places`."""
        return float(torch.cat([self.losses_of(batch) for batch in self.batches(places)]).mean())

    def _rows(self, batch: Batch) -> Generator[tuple[Tensor, Example], None, None]:
        """Rows (..., P + Z) of each structure of a batch; predictions are rows @ weights."""
        vectors, tiles = self.potential.edge_vectors(batch)
        features = edge_features(
            self.potential, batch.atomic_numbers, vectors, tiles, self.config.head_features
        )
        sizes = batch.atoms_per_structure.tolist()
        parts = [
            part.split(sizes) for part in (features.invariants, features.vectors, features.tensors)
        ]
        positions = batch.positions.split(sizes)
        for name, own_positions, *own in zip(batch.structure_ids, positions, *parts, strict=True):
            example = self.examples[int(name)]
            rows = _rows_of_one(
                self.config,
                CarriedFeatures(*own),
                self.expansion,
                example.places.to(own_positions.device),
                own_positions,
                self.num_elements,
            )
            yield rows, example


def _rows_of_one(
    config: HeadConfig,
    features: CarriedFeatures,
    expansion: Expansion | None,
    places: Tensor,
    positions: Tensor,
    num_elements: int,
) -> Tensor:
    """Rows (..., P + Z) of one structure, in float64; differentiable with respect to features."""
    if config.head == "dipole" or expansion is not None:
        return rows_of(
            config.head,
            features,
            expansion,
            places,
            positions,
            num_elements,
            extensive=config.extensive or KINDS[config.head].rank > 0,
        )
    invariants = features.invariants.double()
    rows = torch.cat([invariants, one_hot(places, num_elements).to(invariants)], 1)
    if config.head == "charges":
        return rows - rows.mean(0)
    if config.head == "scalar":
        return rows.sum(0) if config.extensive else rows.mean(0)
    return rows


class _Shuffled:
    """An endless stream of batches, with a new order of the examples in every epoch."""

    num_virtual_ranks = 1

    def __init__(self, examples: Sequence[Example], places: Sequence[int], size: int, seed: int):
        self.examples = examples
        self.places = np.array(places)
        self.size = min(size, len(places))
        self.seed = seed
        self.epoch = 0

    def batches(self) -> Generator[Batch, None, None]:
        """Batches of `size` examples; the incomplete last batch of an epoch is dropped."""
        while True:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.places)
            for first in range(0, len(order) - self.size + 1, self.size):
                chosen = order[first : first + self.size]
                yield Batch.join([self.examples[place].graph for place in chosen])
            self.epoch += 1

    def state(self) -> dict[str, Any]:
        """Empty, because a training cannot be resumed."""
        return {}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Do nothing."""


class _KeepBest(Callback):
    """Evaluates the loss on the left-out structures, and restores the best weights at the end."""

    def __init__(self, training: HeadTraining, left_out: Sequence[int]) -> None:
        self.training = training
        self.left_out = left_out
        self.losses = [(0, training.mean_loss(left_out))]
        self.best_step = 0
        self._best = copied_weights(training)

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        every = max(1, loop.max_steps // NUM_LOOKS)
        if report.step % every and report.step != loop.max_steps:
            return
        loss = self.training.mean_loss(self.left_out)
        if loss < min(earlier for _, earlier in self.losses):
            self.best_step = report.step
            self._best = copied_weights(self.training)
        self.losses.append((report.step, loss))

    def on_end(self, loop: Loop) -> None:
        put_weights(self.training, self._best)


@own_modes()
def train_network(
    potential: Potential,
    labelled: LabelledFrames,
    start: Weights,
    learned: np.ndarray,
    left_out: np.ndarray,
    elements: np.ndarray,
    config: HeadConfig,
    *,
    quiet: bool = True,
) -> Trained:
    """Train a copy of the potential's network on labels, with linear weights from `start`.

    Args:
        learned: indices of the structures to train on.
        left_out: indices of the structures that choose the best step.
        elements: atomic numbers (Z,) of the biases of `start`.

    If a signal ends the training, the best step so far is kept. Raises TrainingError if the
    training cannot continue.
    """
    seed_everything(config.seed)
    own = copy.deepcopy(potential).float()
    own.requires_grad_(False)
    own.backbone.requires_grad_()

    used = np.concatenate([learned, left_out])
    examples = _examples(own, labelled, used, elements, config)
    num_learned = len(learned)
    spread = _spread([example.label for example in examples[:num_learned]], config)
    training = HeadTraining(own, start, examples, config, spread)
    training.measure_size(range(num_learned))

    rate = config.training.learning_rate
    optimizer = OptimizerConfig(learning_rate=rate, clip_norm=CLIP_NORM)
    groups = parameter_groups(own, optimizer)
    groups.append({"params": [training.change], "rate": RATE_OF_WEIGHTS, "weight_decay": 0.0})
    engine = DeepSpeedEngine(training, optimizer, groups=groups)

    max_steps = config.training.max_steps
    warmup = ScheduleConfig(warmup_steps=min(WARMUP_STEPS, max_steps // 10))
    stream = _Shuffled(examples, range(num_learned), config.training.structures, config.seed)
    best = _KeepBest(training, range(num_learned, len(used)))
    callbacks = [best, ProgressBar(Console(quiet=quiet), max_steps, 0)]
    Trainer(engine, stream, Schedule(rate, warmup), max_steps, callbacks).fit()

    own.to(next(potential.parameters())).requires_grad_().eval()
    return Trained(own, best.best_step, best.losses)


def _examples(
    potential: Potential,
    labelled: LabelledFrames,
    used: np.ndarray,
    elements: np.ndarray,
    config: HeadConfig,
) -> list[Example]:
    shares = shares_of(labelled, used, config)
    examples = []
    for place, (s, share) in enumerate(zip(used, shares, strict=True)):
        atoms = labelled.frames[s]
        graph = batch_of(potential, [atoms])
        graph.structure_ids = [str(place)]
        label = np.asarray(labelled.labels[s], dtype=float)
        if config.head == "charges":
            # rows of charges add up to zero, so the labels must do so, too
            label = label - net_charge(atoms) / len(atoms)
        places = torch.as_tensor(np.searchsorted(elements, atoms.numbers))
        examples.append(Example(graph, torch.as_tensor(label), places, float(share)))
    return examples


def _spread(labels: Sequence[Tensor], config: HeadConfig) -> float:
    """Root mean square of all known numbers; for scalars, their standard deviation."""
    numbers = torch.cat([label.reshape(-1) for label in labels])
    numbers = numbers[torch.isfinite(numbers)]
    if KINDS[config.head].rank == 0:
        numbers = numbers - numbers.mean()
    return max(float(numbers.square().mean().sqrt()), 1e-12)
