"""Pairs of reference and predicted labels, in memory and in predictions.npz for parity plots.

Shapes: N atoms and S structures in all. The last dimension of a pair is (reference, predicted). A
missing reference is NaN. Energies do not include the model's E0, because the zero of energy is a
convention of the level of theory and would hide every error in a plot.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from ...core.errors import EvenfieldError
from ...core.files import file_errors, whole_file
from ...core.labels import LABELS, Label
from ...core.memory import memory_for_file


# Exceptions from damaged archives, besides errors of the operating system. The last two stand for
# an unknown compression method, and for an archive that claims to be encrypted.
UNREADABLE = (
    ValueError,
    EOFError,
    KeyError,
    BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)


class BadPredictionsError(EvenfieldError):
    """A file does not hold valid predictions."""


@dataclass(frozen=True)
class Predictions:
    """Reference and predicted labels of structures."""

    atomic_numbers: np.ndarray
    """(N,)"""
    structure_index: np.ndarray
    """(N,) the structure that each atom belongs to"""
    level_index: np.ndarray
    """(S,) index of the level of theory of each structure in `level_names`"""
    level_names: list[str]
    num_atoms: np.ndarray
    """(S,)"""
    pairs: Mapping[str, np.ndarray]
    """Label -> pairs (S, ..., 2) or (N, ..., 2), in the unit of the label."""

    @property
    def energy(self) -> np.ndarray:
        """(S, 2) in eV, without E0."""
        return self.pairs["energy"]

    @property
    def forces(self) -> np.ndarray:
        """(N, 3, 2) in eV/A."""
        return self.pairs["forces"]

    @property
    def stress(self) -> np.ndarray:
        """(S, 3, 3, 2) in eV/A^3."""
        return self.pairs["stress"]

    # cached, because it is used for every element
    @cached_property
    def comparable(self) -> dict[str, np.ndarray]:
        """The pairs in the units of errors: extensive labels are divided by the number of atoms."""
        found = {}
        for name, values in self.pairs.items():
            if LABELS[name].extensive:
                # reshaped for broadcasting, whatever the rank of the label
                sizes = self.num_atoms.reshape(-1, *[1] * (values.ndim - 1))
                values = values / sizes
            found[name] = values
        return found

    def parity(self) -> ParityPairs:
        """The pairs for a parity plot."""
        return ParityPairs(self.comparable, self.level_index, self.level_names)


@dataclass(frozen=True)
class ParityPairs:
    """Pairs by label, in the units of errors, and the level of theory of each structure."""

    pairs: Mapping[str, np.ndarray]
    """Label -> pairs (S, ..., 2) or (N, ..., 2)."""
    level_index: np.ndarray
    """(S,)"""
    level_names: list[str]

    def flat(self, name: str) -> np.ndarray:
        """All components (M, 2) of one label for which both values are finite."""
        rows = self.pairs[name].reshape(-1, 2)
        return rows[np.isfinite(rows).all(axis=1)]

    def save(self, path: Path) -> None:
        """Write predictions.npz, with arrays reference_NAME and predicted_NAME for every label."""
        arrays: dict[str, np.ndarray] = {}
        for name, values in self.pairs.items():
            label = LABELS[name]
            # a plot does not need more digits than the data set stores
            arrays[f"reference_{_stored_name(label)}"] = values[..., 0].astype(label.storage)
            arrays[f"predicted_{_stored_name(label)}"] = values[..., 1].astype(label.storage)
        # an open file, because numpy would add .npz to the temporary name
        with file_errors(path), whole_file(path) as temporary, temporary.open("xb") as file:
            np.savez_compressed(
                file,
                level_index=self.level_index,
                level_names=np.array(self.level_names),
                **arrays,  # type: ignore[arg-type]
            )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read predictions.npz and check that its arrays fit together.

        Labels that are not in the file are left out; older versions did not write the stress.
        Raises BadPredictionsError for an invalid file, and FileError if there is no file.
        """
        with file_errors(path, remedy="`evenfield pretrain` and `evenfield evaluate` write it"):
            try:
                # opened here, because numpy does not close an archive that it cannot read;
                # without pickle, because a pickle in an untrusted file could run code
                with (
                    path.open("rb") as opened,
                    memory_for_file(path.stat().st_size),
                    np.load(opened, allow_pickle=False) as file,
                ):
                    arrays = dict(file)
            except MemoryError as error:
                raise _bad(path, "they unpack to far more than a file of this size") from error
            except UNREADABLE as error:
                raise _bad(path, f"it cannot be read ({error})") from error
        return cls._from_arrays(arrays, path)

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], path: Path) -> Self:
        pairs = {}
        for name, label in LABELS.items():
            reference = arrays.get(f"reference_{_stored_name(label)}")
            predicted = arrays.get(f"predicted_{_stored_name(label)}")
            if reference is None or predicted is None:
                continue
            if reference.shape != predicted.shape:
                shapes = f"{reference.shape} in reference and {predicted.shape} in predicted"
                raise _bad(path, f"{name} has shape {shapes}")
            pairs[name] = np.stack([reference, predicted], axis=-1)
        missing = [name for name in ("level_index", "level_names") if name not in arrays]
        missing += [name for name in ("energy", "forces") if name not in pairs]
        if missing:
            raise _bad(path, f"it lacks {', '.join(missing)}")
        names = [str(name) for name in arrays["level_names"]]
        return cls(pairs, arrays["level_index"], names)


def _stored_name(label: Label) -> str:
    return f"{label.name}_per_atom" if label.extensive else label.name


def _bad(path: Path, reason: str) -> BadPredictionsError:
    return BadPredictionsError(
        f"these are no predictions: {reason}",
        file=path,
        remedy="write them again with `evenfield evaluate`",
    )
