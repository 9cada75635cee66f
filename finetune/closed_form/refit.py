"""Closed-form refit of the linear readout on a frozen backbone.

With the backbone frozen, energies, forces and stress are linear in the readout weights of a head, which are shared (w)
or an element's own (v_z):
    E_s = sum_z n_sz E0_z + scale sum_{i in s} phi_i . (w + v_{z_i})      F_ja = -dE/dr_ja      stress = dE/dstrain / V
so that the minimum of
    sum_s (E_s - E_s^DFT)^2 / (N_s sigma_s)^2 + sum |F - F^DFT|^2 / sigma_F,s^2 + the same of stress + pull toward the
    pretrained weights
is one linear solve. Own weights are refitted for elements that the head never saw; E0 as in reference_energies.py.
A structure's noise sigma_s is the assumed floor and its own residual before the refit, added in squares: one
far-off structure then counts once, not a hundred times (one step of iteratively reweighted least squares). How much
a kind of label counts beside the others is then estimated: its noise is multiplied by its RMS error on structures
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...core.ranks import keep_freed_memory
from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...data_pipelines.stream.packing import pack
from ...data_pipelines.structure import Structure
from ...model_zoo.potential.derivatives import forces_and_stress
from ...model_zoo.potential.potential import Potential
from ..heads import add_to_head
from ..target import alike
from .linear_system import KINDS, Fold, PullChoice, choose_pull, invert_pulled, solve_pulled
from .posterior import Posterior
from .reference_energies import reference_precision


MAX_FOLDS = 16
EDGES, ATOMS = 6000, 256  # of a batch: larger ones gain nothing and fill memory with 64 gradients
NOISE_BOUNDS = (
    0.03,
    1.0,
)  # of the estimated noise over the assumed one, which holds the residuals before the fit
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
Rows = tuple[np.ndarray, np.ndarray]


class RefitConfig(Settings):
    """Floor of the noise that the fit assumes."""

    energy_noise: float = Field(default=0.01, gt=0, description="eV/atom")
    force_noise: float = Field(default=0.1, gt=0, description="eV/A")
    stress_noise: float = Field(default=0.005, gt=0, description="eV/A^3")


@dataclass(frozen=True)
class RefitReport:
    """Outcome: labels used, cross-validated error before and after in units of the noise, and the gradient left.

    `relative_gradient` is |gradient| / |moment| of the objective at the solution: 0 up to rounding. `noise` is the
    estimated one of a typical structure (eV/atom, eV/A, eV/A^3), `duplicates` the structures that came more than once.
    """

    rows: int
    error_before: float
    error_after: float
    relative_gradient: float
    noise: dict[str, float]
    duplicates: int


@dataclass(frozen=True)
class Parameters:
    """Layout of the unknowns: shared weights, own weights of the new elements, E0 of all elements present."""

    size: int  # features d
    new_elements: np.ndarray
    elements: np.ndarray

    @property
    def num_weights(self) -> int:
        return self.size * (1 + len(self.new_elements))

    @property
    def num(self) -> int:
        return self.num_weights + len(self.elements)

    def pattern(
        self, shared: float = 0.0, own: float = 0.0, e0: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """A vector over the unknowns, constant over each kind."""
        parts = np.repeat([shared, own], [self.size, self.num_weights - self.size])
        return np.concatenate([parts, np.broadcast_to(e0, len(self.elements))])


def refit_readout(
    potential: Potential,
    head: int,
    structures: list[Structure],
    *,
    known: set[int],
    known_e0: set[int],
    config: RefitConfig | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> tuple[RefitReport, Posterior]:
    """Refit readout weights and E0 of one head in place; the backbone is not touched.

    `known` and `known_e0` are the atomic numbers for which the head's weights and its E0 were trained; `bootstrap` is
    how many refits to folds drawn with replacement the posterior shall hold. Raises ValueError without any label.
    """
    keep_freed_memory()  # the gradients of 64 features take the same memory again and again: three times as fast
    elements = np.unique(np.concatenate([s.atomic_numbers for s in structures]))
    new = np.array([z for z in elements if z not in known], dtype=int)
    layout = Parameters(potential.readout.weight.shape[1], new, elements)
    parts, duplicates = _parts(structures)
    folds, assumed = [], {kind: [np.empty(0)] for kind in KINDS}
    for part in parts:
        folds.append(Fold.empty(layout.num))
        for rows, noise in _linear_rows(potential, head, part, layout, config or RefitConfig()):
            for kind in KINDS:
                getattr(folds[-1], kind).add(*rows[kind])
                assumed[kind].append(noise[kind])
    if sum(fold.all.rows for fold in folds) == 0:
        raise ValueError("no structure has an energy, forces or stress: there is nothing to fit")
    e0_pull = layout.pattern(e0=reference_precision(elements, known_e0))
    folds, choice, factor = _with_estimated_noise(folds, layout, e0_pull)
    total = sum((fold.all for fold in folds[1:]), folds[0].all)
    change = total.solve(choice.pull)
    gradient = total.matrix @ change + choice.pull * change - total.moment
    add_to_head(potential, head, change, new, elements)
    relative = float(np.linalg.norm(gradient) / max(float(np.linalg.norm(total.moment)), 1e-300))
    estimated = {
        kind: factor[kind] * _median(np.concatenate(assumed[kind])) for kind in choice.held_out
    }
    covariance = invert_pulled(total.matrix, choice.pull)
    level, drawn = (
        potential.config.levels_of_theory[head],
        _bootstrap(folds, choice.pull, bootstrap, seed),
    )
    posterior = Posterior(level, covariance, drawn - change, new, elements, estimated)
    return RefitReport(
        total.rows, choice.error_before, choice.error_after, relative, estimated, duplicates
    ), posterior


def _parts(structures: list[Structure]) -> tuple[list[list[Structure]], int]:
    """Structures in at most 16 folds, and how many are copies; copies stand in one fold, so none is left out alone."""
    groups = alike(structures)
    num = min(MAX_FOLDS, len(groups))
    return [[s for group in groups[k::num] for s in group] for k in range(num)], len(
        structures
    ) - len(groups)


def _with_estimated_noise(
    folds: list[Fold], layout: Parameters, e0_pull: np.ndarray
) -> tuple[list[Fold], PullChoice, dict[str, float]]:
    """Folds over the estimated noise of each kind, the choice of the pull for them, and the noise over the assumed."""
    shared, own = layout.pattern(shared=1.0), layout.pattern(own=1.0)
    first = choose_pull(folds, shared, own, e0_pull)
    factor = {kind: float(np.clip(first.held_out.get(kind, 1.0), *NOISE_BOUNDS)) for kind in KINDS}
    folds = [fold.over(factor) for fold in folds]
    return folds, choose_pull(folds, shared, own, e0_pull), factor


def _bootstrap(folds: list[Fold], pull: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Solutions (number, P) for folds drawn with replacement."""
    rng, parts = np.random.default_rng(seed), [fold.all for fold in folds]
    solutions = np.empty((number, len(pull)))
    for k in range(number):
        counts = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)))
        matrix = sum(c * part.matrix for c, part in zip(counts, parts, strict=True))
        moment = sum(c * part.moment for c, part in zip(counts, parts, strict=True))
        solutions[k] = solve_pulled(matrix, pull, moment)
    return solutions


def _median(noise: np.ndarray) -> float:
    noise = noise[np.isfinite(noise)]
    return float(np.median(noise)) if len(noise) else 0.0


def _linear_rows(
    potential: Potential,
    head: int,
    structures: list[Structure],
    layout: Parameters,
    config: RefitConfig,
) -> Iterator[tuple[dict[str, Rows], dict[str, np.ndarray]]]:
    """Rows (R, P) and targets (R,) of each kind over the assumed noise, and that noise (S,), batch by batch."""
    parameter = next(potential.parameters())
    levels, cutoff = potential.config.levels_of_theory, potential.config.cutoff
    scale = float(potential.scale[head])
    graphs = (Batch.from_structure(s, cutoff, levels, parameter.dtype) for s in structures)
    for graph_list in pack(graphs, EDGES, ATOMS, 1):
        batch = Batch.join(graph_list).to(parameter.device)
        with torch.no_grad():
            out = potential(batch)
        z, index = (
            _numpy(batch.atomic_numbers).astype(int),
            _numpy(batch.structure_index).astype(int),
        )
        num = np.bincount(index)
        phi, force_slope, stress_slope = feature_jacobian(
            potential, batch, layout.new_elements.tolist()
        )
        composition = np.zeros((len(num), len(layout.elements)))
        np.add.at(composition, (index, np.searchsorted(layout.elements, z)), 1.0)
        error = {
            "energy": _numpy(batch.labels["energy"] - out.energy) / num,
            "forces": _numpy(batch.labels["forces"] - out.forces),
            "stress": _voigt(_numpy(batch.labels["stress"] - out.stress)),
        }
        noise = {
            "energy": np.where(
                np.isfinite(error["energy"]), np.hypot(config.energy_noise, error["energy"]), np.nan
            ),
            "forces": _noise(error["forces"], index, len(num), config.force_noise),
            "stress": _noise(error["stress"], np.arange(len(num)), len(num), config.stress_noise),
        }
        energy = np.hstack([scale * _numpy(phi), composition]) / (num * noise["energy"])[:, None]
        forces = scale * _numpy(force_slope).reshape(layout.num_weights, -1).T
        stress = scale * _voigt(_numpy(stress_slope)).reshape(layout.num_weights, -1).T
        yield (
            {
                "energy": (energy, error["energy"] / noise["energy"]),
                "forces": _without_e0(
                    forces, error["forces"], np.repeat(noise["forces"][index], 3), layout
                ),
                "stress": _without_e0(
                    stress, error["stress"], np.repeat(noise["stress"], 6), layout
                ),
            },
            noise,
        )


def _without_e0(
    weights: np.ndarray, error: np.ndarray, noise: np.ndarray, layout: Parameters
) -> Rows:
    """Rows of labels that E0 does not enter, over their noise."""
    rows = np.hstack([weights, np.zeros((len(weights), len(layout.elements)))])
    return rows / noise[:, None], error.ravel() / noise


def _voigt(tensor: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 6): each shear once."""
    return np.stack([tensor[..., a, b] for a, b in VOIGT], -1)


def _noise(error: np.ndarray, index: np.ndarray, num_structures: int, floor: float) -> np.ndarray:
    """Noise (S,) of each structure's components: the floor and their RMS residual in squares; NaN without a label."""
    labelled = np.isfinite(error).all(1)
    square = np.bincount(index[labelled], (error[labelled] ** 2).mean(1), num_structures)
    count = np.bincount(index[labelled], minlength=num_structures)
    return np.where(count > 0, np.sqrt(floor**2 + square / np.maximum(count, 1)), np.nan)


def feature_jacobian(
    potential: Potential, batch: Batch, new_elements: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features summed over each structure (S, P), minus their derivative by positions (P, N, 3), and by strain / V.

    P counts the features summed over all atoms, then over the atoms of each new element; the last is (P, S, 3, 3),
    NaN where a structure is not periodic. Times the readout weights these are the interaction energies, the forces
    and the stress, exactly.
    """
    with torch.enable_grad():
        vectors, tiles = potential.edge_vectors(batch)
        phi = potential.features(batch.atomic_numbers, vectors, tiles)
        masks = [
            torch.ones_like(phi[:, :1]),
            *((batch.atomic_numbers == z).unsqueeze(1) for z in new_elements),
        ]
        blocks = torch.cat([phi * mask for mask in masks], dim=1)  # (N, P)
        total = blocks.sum(0)  # structures do not see each other, so one sum serves all
        forces, stress = [], []
        for feature in total:
            (slope,) = torch.autograd.grad(feature, vectors, retain_graph=True)
            pair = forces_and_stress(slope, vectors.detach(), tiles, batch)
            forces.append(pair[0])
            stress.append(pair[1])
    blocks = blocks.detach().double()
    summed = blocks.new_zeros(batch.num_structures, blocks.shape[1]).index_add(
        0, batch.structure_index, blocks
    )
    return summed, torch.stack(forces), torch.stack(stress)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
