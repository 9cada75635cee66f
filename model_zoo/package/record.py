"""The record of a model: where it comes from, what it is for, and its training elements."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

from ase.data import chemical_symbols
from pydantic import Field

from ...core.settings import Settings


class DataSource(Settings):
    """One source of a data set, with its licence and authors."""

    name: str = Field(description="name of the source")
    licence: str = Field(description="licence of the data")
    citation: str | None = Field(default=None, description="whom to cite")
    url: str | None = Field(default=None, description="where the data were published")
    known_faults: str = Field(default="", description="what is known to be wrong with the data")
    attribution: bool = Field(default=False, description="whether the licence asks to name authors")
    publishable: bool = Field(default=True, description="whether the licence allows a public model")
    levels_of_theory: list[str] = Field(default=[], description="levels of its structures")
    num_structures: int = Field(description="training structures that come from it")


class TrainingData(Settings):
    """One data set that a model was trained on."""

    name: str = Field(description="name of the data set")
    sha256: str = Field(description="hash that pins its content")
    licence: str = Field(description="licence of the data")
    description: str = Field(default="", description="what the data set holds")
    num_structures: int = Field(description="structures that the training used")
    sources: list[DataSource] = Field(
        default=[], description="sources of a corpus; other data sets do not list theirs"
    )

    @classmethod
    def of_data_set(cls, info: Mapping[str, Any], num_structures: int) -> Self:
        """The entry for a converted data set, from the content of its dataset_info.json."""
        return cls(
            name=info["source"]["file"],
            sha256=info["source"]["sha256"],
            licence=info["licence"],
            description=info["description"],
            num_structures=num_structures,
            sources=[_source(entry) for entry in info.get("sources", [])],
        )

    @property
    def unpublishable(self) -> list[str]:
        """Names of sources whose licence does not allow a public model."""
        return [source.name for source in self.sources if not source.publishable]


def _source(entry: Mapping[str, Any]) -> DataSource:
    """Convert an entry of `sources` in a corpus's dataset_info.json."""
    levels = entry["levels_of_theory"]
    shared = {key: entry[key] for key in DataSource.model_fields if key in entry}
    return DataSource(
        **shared
        | {
            "levels_of_theory": list(levels),
            "num_structures": sum(by_split["train"] for by_split in levels.values()),
        }
    )


def notes_on_known_sources(record: ModelRecord, sources: Collection[str]) -> list[str]:
    """One line for each of `sources`, given by SHA-256, that a model was already trained on."""
    notes = []
    for data in record.training_data:
        if data.sha256 in sources:
            notes.append(
                f"the model was trained on this source already ({data.name}): unless it was "
                "divided in the same way, errors on held-out structures look too good"
            )
    return notes


class ModelRecord(Settings):
    """The facts about a model that its users need, apart from its weights."""

    name: str = Field(description="name of the model")
    licence: str | None = Field(default=None, description="licence of the weights")
    description: str = Field(default="", description="what the model is for, in a sentence or two")
    citation: str | None = Field(default=None, description="how to cite it")
    level_details: dict[str, str] = Field(
        default={}, description="level of theory -> code, functional, basis, dispersion, spin"
    )
    elements: dict[str, list[str]] = Field(
        description="level of theory -> symbols seen in training"
    )
    default_level: str | None = Field(
        default=None, description="level of theory that is used when none is asked for"
    )
    train_counts: dict[str, int] = Field(default={}, description="symbol -> training structures")
    level_counts: dict[str, dict[str, int]] = Field(
        default={},
        description="level of theory -> symbol -> training structures; records of older models "
        "do not have it",
    )
    training_data: list[TrainingData] = Field(
        default=[], description="data sets that the model was trained on"
    )
    training: dict[str, Any] = Field(
        default={}, description="resolved config and cost of the training"
    )
    versions: dict[str, str] = Field(default={}, description="package -> version that made it")
    base_model: str | None = Field(
        default=None, description="reference of the model that was fine-tuned"
    )

    @property
    def symbols(self) -> list[str]:
        """All elements trained at any level of theory, in the order of the periodic table."""
        seen: set[str] = set()
        for symbols in self.elements.values():
            seen.update(symbols)
        return sorted(seen, key=chemical_symbols.index)

    def trained_symbols(self, level: str) -> list[str]:
        """The elements for which a level of theory has at least one training structure.

        Records of older models may list other elements too. If the record has counts, only elements
        with a positive count are returned.
        """
        counts = self.level_counts.get(level, self.train_counts)
        listed = self.elements.get(level, [])
        return [symbol for symbol in listed if not counts or counts.get(symbol, 0) > 0]

    @property
    def learned(self) -> dict[str, list[str]]:
        """The `trained_symbols` of each level of theory."""
        return {level: self.trained_symbols(level) for level in self.elements}

    def unlearned(self) -> list[str]:
        """Listed elements without training structures, each as `SYMBOL at LEVEL`."""
        claims = []
        for level, learned in self.learned.items():
            missing = [symbol for symbol in self.elements[level] if symbol not in learned]
            claims += [f"{symbol} at {level}" for symbol in missing]
        return claims


class Description(Settings):
    """Facts about a model that a person supplies.

    Given facts replace those in the record; all others stay unchanged.
    """

    name: str | None = Field(default=None, description="name of the model")
    licence: str | None = Field(default=None, description="licence of the weights")
    description: str | None = Field(default=None, description="what the model is for")
    citation: str | None = Field(default=None, description="how to cite it")
    level_details: dict[str, str] = Field(
        default={}, description="level of theory -> code, functional, basis, dispersion, spin"
    )
    default_level: str | None = Field(
        default=None, description="level of theory that is used when none is asked for"
    )
