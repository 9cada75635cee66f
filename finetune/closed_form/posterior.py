"""Posterior of a refit: the covariance of what was fitted, stored beside the model for uncertainties."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save


FILE = "posterior.safetensors"


@dataclass(frozen=True)
class Posterior:
    """Gaussian posterior of P unknowns of one head: d shared weights, d own weights a new element, E0.

    The covariance is (A^T A + pull)^-1 with rows A over the estimated noise: of weights in eV per feature and unit of
    the head's scale, of E0 in eV. Its mean is what stands in the model.
    """

    level_of_theory: str
    covariance: np.ndarray  # (P, P)
    bootstrap: (
        np.ndarray
    )  # (K, P): refits to structures drawn with replacement, less the one in the model
    new_elements: np.ndarray  # atomic numbers with own weights
    elements: np.ndarray  # atomic numbers with a fitted E0
    noise: dict[str, float]  # eV/atom, eV/A, eV/A^3

    @property
    def size(self) -> int:
        """Features d."""
        return (len(self.covariance) - len(self.elements)) // (1 + len(self.new_elements))

    def energy_variance(self, summed_features: np.ndarray, atomic_numbers: np.ndarray) -> float:
        """Variance (eV^2) of a structure's energy; `summed_features` (d (1 + new elements),) carry the head's scale."""
        counts = [(atomic_numbers == z).sum() for z in self.elements]
        row = np.concatenate([summed_features, counts])
        return float(row @ self.covariance @ row)

    def to_bytes(self) -> bytes:
        """The content of posterior.safetensors, which stands beside a model's weights."""
        names = ("covariance", "bootstrap", "new_elements", "elements")
        arrays = {name: getattr(self, name) for name in names}
        tensors = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        about = json.dumps(
            {"level_of_theory": self.level_of_theory, "noise": self.noise}, sort_keys=True
        )
        return save(tensors, metadata={"evenfield": about})


def load_posterior(model: Path) -> Posterior:
    """Read the posterior of a refitted model's folder; raises FileNotFoundError where there is none."""
    path = Path(model) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the model has no posterior: make one with `evenfield finetune`"
        )
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["evenfield"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return Posterior(**about, **tensors)
