"""The posterior of a refit: the covariance of what was fitted, stored next to the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from ...core.errors import EvenfieldError
from ...model_zoo.package.arrays import arrays_file
from ...model_zoo.package.folder import read_attachment
from ...model_zoo.package.manifest import MANIFEST


FILE = "posterior.safetensors"


class NoPosteriorError(EvenfieldError):
    """A model folder without a posterior."""


@dataclass(frozen=True)
class LeftOut:
    """Refits that each leave one part of the structures out, for errors that nobody has learned."""

    parts: list[list[int]]
    """Places of the structures of each of the K parts, in the order in which they were given."""
    changes: np.ndarray
    """(K, P) refits without each part, as differences to the model's weights."""


@dataclass(frozen=True)
class Posterior:
    """Gaussian posterior of the P parameters of one head. Its mean is the weights of the model.

    The parameters, in this order: d weights that all elements share, d own weights for each new
    element, and the E0 of each element. Weights are in eV per feature and unit of the head's scale,
    E0 in eV.

    The covariance is (A^T A + precision)^-1, with rows A divided by the estimated noise.
    """

    level_of_theory: str
    covariance: np.ndarray
    """(P, P)"""
    bootstrap: np.ndarray
    """(K, P) refits to folds drawn with replacement, as differences to the model's weights."""
    new_elements: np.ndarray
    """Atomic numbers with own weights."""
    elements: np.ndarray
    """Atomic numbers with a fitted E0."""
    noise: dict[str, float]
    """Estimated noise of a typical structure by label: eV/atom, eV/A, eV/A^3."""
    left_out: LeftOut | None = None
    """Present right after a refit, but not stored: without the structures it means nothing."""

    @property
    def size(self) -> int:
        """Number of features d."""
        return (len(self.covariance) - len(self.elements)) // (1 + len(self.new_elements))

    def narrowed(self, size: int) -> Posterior:
        """The posterior of the first `size` features, when the others have no weights."""
        in_block = np.arange(self.size) < size
        blocks = np.tile(in_block, 1 + len(self.new_elements))
        kept = np.concatenate([blocks, np.ones(len(self.elements), dtype=bool)])
        left_out = self.left_out
        if left_out is not None:
            left_out = replace(left_out, changes=left_out.changes[:, kept])
        return replace(
            self,
            covariance=self.covariance[np.ix_(kept, kept)],
            bootstrap=self.bootstrap[:, kept],
            left_out=left_out,
        )

    def energy_variance(self, summed_features: np.ndarray, atomic_numbers: np.ndarray) -> float:
        """Variance (eV^2) of the energy of a structure.

        summed_features: (d (1 + new elements),), times the scale of the head.
        """
        counts = [(atomic_numbers == z).sum() for z in self.elements]
        row = np.concatenate([summed_features, counts])
        return float(row @ self.covariance @ row)

    def to_bytes(self) -> bytes:
        """The content of posterior.safetensors. Raises EvenfieldError where it is not finite."""
        names = ("covariance", "bootstrap", "new_elements", "elements")
        tensors: dict[str, np.ndarray] = {name: getattr(self, name) for name in names}
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise EvenfieldError(
                    f"the {name} of the closed-form refit is not finite",
                    remedy="look at the labels: some may be far too large",
                )
        about = {"level_of_theory": self.level_of_theory, "noise": self.noise}
        return arrays_file(tensors, json.dumps(about, sort_keys=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> Posterior:
        """Inverse of `to_bytes`. The bytes must have been verified: see `load_posterior`."""
        # safetensors has no function that reads metadata from bytes
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = json.loads(header["__metadata__"]["evenfield"])
        tensors = load(data)
        return cls(
            level_of_theory=about["level_of_theory"],
            covariance=tensors["covariance"],
            bootstrap=tensors["bootstrap"],
            new_elements=tensors["new_elements"],
            elements=tensors["elements"],
            noise=about["noise"],
        )


def load_posterior(model: Path | str) -> Posterior:
    """Read the posterior in the folder of a refitted model. Raises NoPosteriorError without one.

    A file that the manifest of the model does not list is not its posterior.
    """
    model = Path(model)
    # a model need not have a posterior, and a mistyped name is no folder at all
    is_model = (model / MANIFEST).is_file()
    data = read_attachment(model, FILE) if is_model else None
    if data is None:
        raise NoPosteriorError(
            "the model has no posterior",
            remedy="make one with `evenfield finetune`",
            file=model / FILE,
        )
    return Posterior.from_bytes(data)
