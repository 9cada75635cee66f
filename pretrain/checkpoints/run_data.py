"""What a checkpoint stores about the data and heads of its run, and how other data differ.

Heads, rows of E0 and positions in a stream are numbers that have a meaning only for the data of the
run. A checkpoint therefore also stores the names of levels of theory and elements.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ...data_pipelines.census.energy_sketch import common
from ...data_pipelines.checks.leaks import HELD_OUT, rows_in
from ...data_pipelines.store.fingerprints import read_fingerprints
from ...data_pipelines.stream.collection import Collection
from ...model_zoo.potential.potential import Potential


# If two levels of theory share at least this many energies, it is not by chance.
FEWEST_COMMON = 3
# A level may keep a share of its own structures and receive a share of another level's structures.
# If the ratio of these shares is at least this value, the level has grown and was not exchanged.
MOST_OF_ITS_OWN = 0.5
# The number of fingerprints of training structures that are stored, the smallest ones. Fingerprints
# are hashes, so these are a random sample that is reproducible for any data.
MOST_LEARNED = 2000


@dataclass(frozen=True)
class RunData:
    """The data sets of a run, and the content of their training splits."""

    contents: dict[str, str]
    """Name of a data set -> hash of its structures. A single data set is named "data"."""

    num_structures: int
    """The number of training structures in all data sets."""

    elements: dict[str, list[str]]
    """Level of theory -> elements with training energies, for all levels with training data."""

    sketches: dict[str, list[str]]
    """Level of theory -> energy sketch; empty for data converted before sketches existed."""

    physics: str | None
    """Hash of the physics that was subtracted from the labels; None without physics."""

    learned: list[int]
    """The smallest fingerprints of structures that the run has trained on, ascending."""

    @classmethod
    def of(cls, data: Collection) -> Self:
        contents = {}
        for folder, info in zip(data.folders, data.infos, strict=True):
            # a single data set may be in another folder at a resume
            name = folder.name if len(data.folders) > 1 else "data"
            contents[name] = _content(info)
        elements = {}
        sketches = {}
        for level, row in trained_levels(data).items():
            elements[level] = sorted(row["e0"])
            sketches[level] = row.get("energy_sketch", [])
        learned = _smallest(_fingerprints(data, "train"))
        physics = None if data.physics is None else data.physics.sha256
        return cls(contents, data.num_structures("train"), elements, sketches, physics, learned)

    def after(self, before: RunData) -> RunData:
        """These data for a run that has also trained on the data `before`."""
        learned = _smallest(np.array([*self.learned, *before.learned], np.int64))
        return replace(self, learned=learned)

    def known_in(self, data: Collection) -> list[str]:
        """A note for each held-out split with near copies of structures that the run trained on.

        Structures that also have copies in the training split of `data` are not counted, because
        the conversion has already reported them.
        """
        notes = []
        own = np.sort(_fingerprints(data, "train"))
        for split in HELD_OUT:
            judged = _fingerprints(data, split)
            judged = np.delete(judged, rows_in(own, judged))
            # if fingerprints are a sample, only those below its largest can be compared
            is_sample = len(self.learned) >= MOST_LEARNED
            comparable = judged[judged <= self.learned[-1]] if is_sample else judged
            known = len(rows_in(np.array(self.learned, np.int64), comparable))
            if known:
                of_a_sample = " that could be compared" if is_sample else ""
                notes.append(
                    f"warning: the run has trained on {known} of the {len(comparable)} {split} "
                    f"structures{of_a_sample}: errors on them look too good. Convert the data so "
                    "that old structures keep their split, or start a new run in another folder"
                )
        return notes

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        # runs that started before sketches existed continue without them
        sketches = saved.get("sketches") or {level: [] for level in saved["elements"]}
        return cls(
            saved["contents"],
            saved["num_structures"],
            saved["elements"],
            sketches,
            saved.get("physics"),
            saved.get("learned", []),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "contents": self.contents,
            "num_structures": self.num_structures,
            "elements": self.elements,
            "sketches": self.sketches,
            "physics": self.physics,
            "learned": self.learned,
        }

    def taken_from(self, before: RunData) -> dict[str, str]:
        """Levels of theory that now hold structures of another level in the data `before`.

        The result maps each such level to the level that had the structures. Structures are
        recognised by energies that are equal to the last digit. A level that also kept its own
        structures is not included.
        """
        taken = {}
        for level, sketch in self.sketches.items():
            found = {}
            for old, old_sketch in before.sketches.items():
                number, judged = common(old_sketch, sketch)
                if number >= FEWEST_COMMON:
                    found[old] = number / judged
            best = max(found, key=found.__getitem__, default=level)
            if found.get(level, 0.0) < MOST_OF_ITS_OWN * found.get(best, 0.0):
                taken[level] = best
        return taken

    def missing_in(self, other: RunData) -> list[str]:
        """Phrases for levels of theory, and elements at levels, that `other` lacks."""
        phrases = []
        for level, elements in self.elements.items():
            if level not in other.elements:
                phrases.append(f"level of theory {level}")
                continue
            missing = [symbol for symbol in elements if symbol not in other.elements[level]]
            if missing:
                phrases.append(f"{', '.join(missing)} at {level}")
        return phrases

    def difference_from(self, before: RunData) -> str:
        """One phrase on how these data differ from the data `before`."""
        phrases = []
        gone = before.missing_in(self)
        if gone:
            phrases.append(f"they lack {' and '.join(gone)}")
        added = self.missing_in(before)
        if added:
            phrases.append(f"they add {' and '.join(added)}")
        for level, old in self.taken_from(before).items():
            phrases.append(f"the structures of {old} are at {level} now")
        if len(self.contents) != len(before.contents):
            phrases.append(f"they are {len(self.contents)} sets instead of {len(before.contents)}")
        elif self.contents.keys() != before.contents.keys():
            names = [", ".join(sorted(own.contents)) for own in (self, before)]
            phrases.append(f"they are the sets {names[0]} instead of {names[1]}")
        if self.num_structures != before.num_structures:
            phrases.append(
                f"they have {self.num_structures} training structures instead of "
                f"{before.num_structures}"
            )
        if not phrases:
            phrases.append("the content of structures or labels differs")
        return "; ".join(phrases)


def trained_levels(data: Collection) -> dict[str, Any]:
    """Census rows of the levels of theory with training structures, the largest first."""
    levels = data.census()["levels_of_theory"]
    return {level: row for level, row in levels.items() if row["structures"].get("train")}


def _fingerprints(data: Collection, split: str) -> np.ndarray:
    """Fingerprints of the structures in a split of all data sets."""
    found = [
        read_fingerprints(folder, info)[split]
        for folder, info in zip(data.folders, data.infos, strict=True)
    ]
    return np.concatenate(found)


def _smallest(fingerprints: np.ndarray) -> list[int]:
    """The smallest distinct fingerprints, ascending, at most MOST_LEARNED."""
    # not np.unique, which takes fifty times as long as a sort
    ordered = np.sort(fingerprints)
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    smallest: list[int] = ordered[is_first][:MOST_LEARNED].tolist()
    return smallest


def _content(info: dict[str, Any]) -> str:
    """Hash of all structures of a data set, over all splits, from its dataset_info.json.

    The hash of the source is not enough, because one source can be converted to data sets with
    different labels, levels of theory and splits.
    """
    digest = hashlib.sha256()
    for name, shard in sorted(info["shards"].items()):
        digest.update(f"{name} {shard['sha256']}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class KeptHeads:
    """What a resumed potential keeps from the saved one, even if the data have changed."""

    num_neighbours: float
    """The normalisation of sums over neighbours with which the weights were trained."""

    elements: dict[str, list[str]]
    """Level of theory -> elements with known E0, in the order of the heads."""

    @classmethod
    def of(cls, potential: Potential, run_data: RunData) -> Self:
        levels = potential.config.levels_of_theory
        elements = {level: run_data.elements[level] for level in levels}
        return cls(potential.config.num_neighbours, elements)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        # stored as a list, because JSON objects do not guarantee the order of the heads
        elements = {row["level_of_theory"]: row["elements"] for row in saved["heads"]}
        return cls(saved["num_neighbours"], elements)

    def to_dict(self) -> dict[str, Any]:
        heads = []
        for level, elements in self.elements.items():
            heads.append({"level_of_theory": level, "elements": elements})
        return {"num_neighbours": self.num_neighbours, "heads": heads}
