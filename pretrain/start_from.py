"""Start a run from a finished model instead of random weights.

Weights, heads and reference energies are taken over. Heads are matched by the name of their level
of theory, so the run may have other levels, in another order, and more elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from ase.data import atomic_numbers

from ..core.errors import EvenfieldError
from ..core.level_names import refuse_other_spelling
from ..data_pipelines.physics.residual import refuse_other_physics
from ..data_pipelines.stream.collection import Collection
from ..data_pipelines.structure import Structure
from ..model_zoo.evaluation.level_fit import misfits
from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.package.record import TrainingData
from ..model_zoo.potential.config import ModelConfig
from ..model_zoo.potential.potential import TENSORS_OF_HEADS, Potential
from .checkpoints.run_data import KeptHeads


# Settings of the model that a run may change, because all weights still fit and keep their meaning.
CHANGEABLE = ("silent_below", "whole_from")


@dataclass(frozen=True)
class StartRecord:
    """The facts about the start model that checkpoints and the record of the new model keep."""

    reference: str
    training_data: list[TrainingData]
    """The data sets that the start model was trained on."""

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        data = [TrainingData.model_validate(source) for source in saved["training_data"]]
        return cls(saved["reference"], data)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form, kept in checkpoints because the model may be gone at a resume."""
        data = [source.model_dump(mode="json") for source in self.training_data]
        return {"reference": self.reference, "training_data": data}

    def with_data(self, data: list[TrainingData]) -> list[TrainingData]:
        """The data sets of the start model followed by `data`, those of the run, each once."""
        again = {source.sha256 for source in data}
        before = [source for source in self.training_data if source.sha256 not in again]
        return [*before, *data]


@dataclass(frozen=True)
class Start:
    """A finished model as the start of a run, whose data may have other levels of theory."""

    model: LoadedModel

    @property
    def levels(self) -> list[str]:
        """The levels of theory of the model."""
        return self.model.potential.config.levels_of_theory

    def check(self, config: ModelConfig, data: Collection) -> None:
        """Raise EvenfieldError if the model settings differ from those of the run.

        Those in CHANGEABLE may differ.

        Raises PhysicsError if the model's physics is not that of the data.
        """
        refuse_other_physics(data.physics, self.model.potential.config.physics, str(data))
        own = _settings(self.model.potential.config)
        asked = _settings(config)
        different = [
            key for key in own | asked if key not in CHANGEABLE and own.get(key) != asked.get(key)
        ]
        if different:
            those = ", ".join(f"{key}={own.get(key)}" for key in different)
            ours = ", ".join(f"{key}={asked.get(key)}" for key in different)
            set_these = " ".join(f"model.{key}={own[key]}" for key in different if key in own)
            raise EvenfieldError(
                f"was built with {those}, and the run with {ours}",
                file=f"start_from={self.model.reference}",
                remedy=f"set {set_these}, or leave start_from out",
            )

    def check_levels(self, levels: Iterable[str], data: str) -> None:
        """Raise EvenfieldError for a level of the data that the model spells differently.

        Otherwise it would count as a new level, and the learned head would be lost.
        """
        refuse_other_spelling(
            levels,
            self.levels,
            EvenfieldError,
            owner=f"start_from={self.model.reference}",
            file=data,
            remedy=how_to_rename,
        )

    @property
    def record(self) -> StartRecord:
        """The facts that the checkpoints and the model of the run keep."""
        return StartRecord(self.model.reference, self.model.record.training_data)

    @property
    def kept(self) -> KeptHeads:
        """The normalisation of the model, for building the potential of the run.

        No heads are kept here, so their order is that of the data.
        """
        return KeptHeads(self.model.potential.config.num_neighbours, {})

    def take_over(self, potential: Potential, sharing: list[str]) -> list[str]:
        """Load the model's weights into the potential of a run, in place; returns notes.

        For levels of theory that both have, readout, radii, energy scale, and the E0 of learned
        elements are taken over. New levels, and the E0 of other elements, keep the values that were
        derived from the data.

        sharing: levels of theory that share their readouts. A new level among them starts with the
            readout and energy scale of the first one that the model has.
        """
        levels = potential.config.levels_of_theory
        own = potential.state_dict()
        saved = self.model.potential.state_dict()
        shared = [level for level in levels if level in self.levels]

        for name, tensor in own.items():
            if name not in TENSORS_OF_HEADS:
                tensor.copy_(saved[name])
                continue
            for level in shared:
                row = saved[name][self.levels.index(level)]
                head = levels.index(level)
                if name == "e0":
                    learned = self.model.record.trained_symbols(level)
                    known = [atomic_numbers[symbol] for symbol in learned]
                    tensor[head, known] = row[known]
                else:
                    tensor[head] = row

        known_sharing = [level for level in sharing if level in shared]
        if known_sharing:
            for level in sharing:
                if level not in shared:
                    _start_like(potential, levels.index(level), levels.index(known_sharing[0]))

        notes = [f"starts from the weights of {self.model.reference}"]
        for key in CHANGEABLE:
            before = getattr(self.model.potential.config.network, key)
            after = getattr(potential.config.network, key)
            if after != before:
                notes.append(f"model.{key} is {after}; it was {before} in the start model")
        new = [level for level in levels if level not in self.levels]
        if new:
            names = ", ".join(new)
            notes.append(f"levels of theory that are new, with readouts of their own: {names}")
        return notes

    def left_behind(self, elements: Mapping[str, Iterable[str]]) -> list[str]:
        """Notes on levels and elements that the model has learned but the data do not contain.

        elements: level of theory -> symbols with training energies in the data of the run.
        """
        notes = []
        levels = [level for level in self.levels if level not in elements]
        if levels:
            notes.append(f"levels of theory that are left behind: {', '.join(levels)}")
        for level in self.levels:
            if level not in elements:
                continue
            learned = set(self.model.record.trained_symbols(level))
            symbols = sorted(learned - set(elements[level]), key=atomic_numbers.__getitem__)
            if symbols:
                notes.append(
                    f"elements that are left behind at {level}, since no training structure has "
                    f"them: {', '.join(symbols)}"
                )
        return notes

    def notes_on_levels(self, potential: Potential, structures: list[Structure]) -> list[str]:
        """Warnings about levels whose energies in the data do not fit the heads of the model."""
        elements = {
            level: self.model.record.trained_symbols(level)
            for level in potential.config.levels_of_theory
            if level in self.levels
        }
        found = misfits(potential, structures, elements)
        return [f"warning: {misfit}; is this the level of theory of the model?" for misfit in found]


def how_to_rename(level: str) -> str:
    """The remedy for data that spell the level of theory `level` differently."""
    return (
        f"convert the data again with level_of_theory={level!r} if it is the same, or else with a "
        "name that differs more"
    )


def _start_like(potential: Potential, head: int, like: int) -> None:
    """Copy readout and energy scale from head `like` to `head`, in place. E0 is unchanged."""
    with torch.no_grad():
        for weights in (potential.readout.weight, potential.readout.element_weight):
            weights[head] = weights[like]
        potential.scale[head] = potential.scale[like]


def _settings(config: ModelConfig) -> dict[str, Any]:
    """The model settings that a user chooses, without those derived from data."""
    return {
        key: value
        for key, value in config.model_dump(mode="json").items()
        if key not in ("levels_of_theory", "num_neighbours", "physics")
    }
