"""The rows of the linear problem: energies, forces and stress as functions of readout weights.

With a frozen network these labels are linear in the unknowns of a head: the weights that all
elements share (w), those of a single element (v_z), and the reference energies (E0_z):

    E_s = sum_z n_sz E0_z + scale sum_{i in s} phi_i . (w + v_{z_i})
    F_ja = -dE/dr_ja
    stress = dE/dstrain / V

A row says how a label responds to changes of the unknowns. Its target is the present error of the
potential. Both are divided by the noise of the label.

Shapes: N atoms, S structures, d features, P unknowns, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...core.errors import EvenfieldError
from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...data_pipelines.census.census import NUM_ELEMENTS
from ...data_pipelines.stream.packing import pack
from ...data_pipelines.structure import Structure
from ...model_zoo.potential.derivatives import forces_and_stress
from ...model_zoo.potential.potential import Potential
from .by_directions import VOIGT, jacobian_by_directions, moved_atoms


# Limits of a batch. Larger ones are no faster, and the gradients of all features fill the memory.
MOST_EDGES = 6000
MOST_ATOMS = 256

Rows = tuple[np.ndarray, np.ndarray]
"""Rows (R, P) and targets (R,)."""


class RefitConfig(Settings):
    """Lower bounds of the noise that the fit assumes for the labels, and the size of a wide one."""

    energy_noise: float = Field(default=0.01, gt=0, description="eV/atom")
    force_noise: float = Field(default=0.1, gt=0, description="eV/A")
    stress_noise: float = Field(default=0.005, gt=0, description="eV/A^3")
    random_features: int = Field(
        default=192,
        ge=0,
        le=2048,
        description="most random features that strategy=wide appends to the readout",
    )


@dataclass(frozen=True)
class LabelWeights:
    """How much labels count in the fit; a label with a weight of 2 counts like one given twice.

    The mean should be near 1: larger weights also make the prior count less, smaller ones more.
    """

    structures: np.ndarray
    """(S,) of the structures, in their order."""
    elements: np.ndarray
    """(119,) of the forces on atoms of each element, times the weight of the structure."""

    @classmethod
    def equal(cls, num_structures: int) -> LabelWeights:
        """Weights of 1."""
        return cls(np.ones(num_structures), np.ones(NUM_ELEMENTS))

    def check(self, num_structures: int) -> None:
        """Raise WeightError for weights that do not fit or mean nothing."""
        expected = {"structures": num_structures, "elements": NUM_ELEMENTS}
        for name, length in expected.items():
            values = getattr(self, name)
            if np.shape(values) != (length,):
                raise WeightError(
                    f"weights of {name} have the shape {np.shape(values)}",
                    remedy=f"give {length} numbers",
                )
            if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
                raise WeightError(
                    f"weights of {name} are negative, not finite or all zero",
                    remedy="give numbers from 0, some of them above 0",
                )


class WeightError(EvenfieldError):
    """Weights of labels that cannot be used."""


@dataclass(frozen=True)
class Unknowns:
    """The order of the unknowns: shared weights, own weights of the new elements, E0."""

    size: int
    """Number of features d."""
    new_elements: np.ndarray
    """Atomic numbers that get own weights."""
    elements: np.ndarray
    """Atomic numbers in the structures, whose E0 is fitted."""

    @property
    def num_weights(self) -> int:
        """Unknowns that are weights."""
        return self.size * (1 + len(self.new_elements))

    @property
    def num(self) -> int:
        """P, all unknowns."""
        return self.num_weights + len(self.elements)

    def pattern(
        self, shared: float = 0.0, own: float = 0.0, e0: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """A vector (P,): one value for all shared weights, one for all own weights, and `e0`."""
        num_own = self.num_weights - self.size
        weights = np.repeat([shared, own], [self.size, num_own])
        of_e0 = np.broadcast_to(e0, len(self.elements))
        return np.concatenate([weights, of_e0])


@dataclass(frozen=True)
class DesignRows:
    """The rows of one batch. Every field maps the name of a label to its arrays."""

    rows: dict[str, Rows]
    """Divided by the assumed noise, and multiplied by the square roots of the weights."""
    noise: dict[str, np.ndarray]
    """(S,) assumed noise of each structure; NaN without the label."""
    units: dict[str, np.ndarray]
    """(R,) factors that turn the error of a row into a weighted error in the unit of the label."""
    weights: dict[str, np.ndarray]
    """(R,) weight of each row."""


def design_rows(
    potential: Potential,
    head: int,
    structures: list[Structure],
    unknowns: Unknowns,
    config: RefitConfig,
    weights: LabelWeights | None = None,
    *,
    by_directions: bool = False,
) -> Iterator[DesignRows]:
    """The rows of all structures, batch by batch.

    weights: of the labels, by default 1. Rows and targets are multiplied by their square roots; the
    assumed noise does not depend on them.
    by_directions: differentiate along directions (by_directions.py) where that takes fewer passes
    than there are features. Of a large structure, only the forces on some of its atoms become rows.

    The assumed noise of a structure is the floor in `config` plus its own error before the refit,
    added in squares. So a structure that is far off counts once and not a hundred times. This is
    one step of iteratively reweighted least squares.
    """
    parameter = next(potential.parameters())
    levels = potential.config.levels_of_theory
    cutoff = potential.config.cutoff
    graphs = (
        Batch.from_structure(structure, cutoff, levels, parameter.dtype) for structure in structures
    )
    end = 0
    # a look-ahead of one keeps the order
    for graph_list in pack(graphs, MOST_EDGES, MOST_ATOMS, look_ahead=1):
        batch = Batch.join(graph_list).to(parameter.device)
        begin, end = end, end + len(graph_list)
        rows = _rows_of_batch(potential, head, batch, unknowns, config, by_directions=by_directions)
        if weights is not None:
            rows = _weighted(rows, batch, weights.structures[begin:end], weights.elements)
        yield rows


def _weighted(
    unweighted: DesignRows, batch: Batch, of_structure: np.ndarray, of_element: np.ndarray
) -> DesignRows:
    """Rows and targets times the square roots of their weights.

    of_structure: (S,) weights of the structures. of_element: (119,) further factors of forces.
    """
    structure_index = _numpy(batch.structure_index).astype(int)
    atomic_numbers = _numpy(batch.atomic_numbers).astype(int)
    of_atom = of_structure[structure_index] * of_element[atomic_numbers]
    weights = {
        "energy": of_structure,
        "forces": np.repeat(of_atom, 3),
        "stress": np.repeat(of_structure, len(VOIGT)),
    }
    rows = {}
    units = {}
    for name, (matrix, targets) in unweighted.rows.items():
        root = np.sqrt(weights[name])
        rows[name] = (matrix * root[:, None], targets * root)
        # the weighted error has the whole weight, and the row one root of it already
        units[name] = unweighted.units[name] * root
    return DesignRows(rows, unweighted.noise, units, weights)


def _rows_of_batch(
    potential: Potential,
    head: int,
    batch: Batch,
    unknowns: Unknowns,
    config: RefitConfig,
    *,
    by_directions: bool,
) -> DesignRows:
    """The rows of one batch, with weights of 1."""
    with torch.no_grad():
        predicted = potential(batch)
    structure_index = _numpy(batch.structure_index).astype(int)  # (N,)
    num_atoms = np.bincount(structure_index)  # (S,)
    num_structures = len(num_atoms)

    # the targets: what the potential gets wrong
    energy_error = _numpy(batch.labels["energy"] - predicted.energy) / num_atoms  # eV/atom
    force_error = _numpy(batch.labels["forces"] - predicted.forces)  # eV/A
    stress_error = _voigt(_numpy(batch.labels["stress"] - predicted.stress))  # eV/A^3

    has_energy = np.isfinite(energy_error)
    energy_noise = np.where(has_energy, np.hypot(config.energy_noise, energy_error), np.nan)
    force_noise = _noise(force_error, structure_index, num_structures, config.force_noise)
    one_row_each = np.arange(num_structures)
    stress_noise = _noise(stress_error, one_row_each, num_structures, config.stress_noise)

    # the rows: how the labels respond to changes of the unknowns
    moved = moved_atoms(batch) if by_directions else None
    if moved is not None and _passes(structure_index, moved) < unknowns.num_weights:
        slopes = jacobian_by_directions(potential, batch, unknowns.new_elements.tolist(), moved)
        # without a label, the rows of the other atoms are dropped
        force_error = np.where(moved[:, None], force_error, np.nan)
    else:
        slopes = feature_jacobian(potential, batch, unknowns.new_elements.tolist())
    summed, force_slope, stress_slope = slopes
    scale = float(potential.scale[head])
    composition = _composition(batch, structure_index, num_structures, unknowns.elements)

    # Energies are compared per atom, so that large structures do not outweigh small ones.
    energy_scale = (num_atoms * energy_noise)[:, None]
    energy_rows = np.hstack([scale * _numpy(summed), composition]) / energy_scale
    force_slope_of_weight = _numpy(force_slope).reshape(unknowns.num_weights, -1)
    force_rows = scale * force_slope_of_weight.T
    stress_slope_of_weight = _voigt(_numpy(stress_slope)).reshape(unknowns.num_weights, -1)
    stress_rows = scale * stress_slope_of_weight.T

    noise_of_force_rows = np.repeat(force_noise[structure_index], 3)
    noise_of_stress_rows = np.repeat(stress_noise, len(VOIGT))
    units = {"energy": energy_noise, "forces": noise_of_force_rows, "stress": noise_of_stress_rows}
    return DesignRows(
        rows={
            "energy": (energy_rows, energy_error / energy_noise),
            "forces": _without_e0(force_rows, force_error, noise_of_force_rows, unknowns),
            "stress": _without_e0(stress_rows, stress_error, noise_of_stress_rows, unknowns),
        },
        noise={"energy": energy_noise, "forces": force_noise, "stress": stress_noise},
        units=units,
        weights={name: np.ones(len(unit)) for name, unit in units.items()},
    )


def _passes(structure_index: np.ndarray, moved: np.ndarray) -> int:
    """How many directions have to be taken for the forces on the moved atoms (N,) of a batch."""
    return 3 * int(np.bincount(structure_index[moved]).max())


def feature_jacobian(
    potential: Potential, batch: Batch, new_elements: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The features of each structure and their derivatives, by one reverse pass per feature.

    Returns three tensors: the features summed over the atoms of each structure (S, P), minus their
    derivatives by the positions (P, N, 3), and their derivatives by the strain over the volume
    (P, S, 3, 3), NaN where a structure is not periodic. P counts the features summed over all
    atoms, then over the atoms of each new element.

    Times the readout weights, these are exactly the interaction energies, forces and stress.
    """
    with torch.enable_grad():
        vectors, tiles = potential.edge_vectors(batch)
        phi = potential.features(batch.atomic_numbers, vectors, tiles)  # (N, d)

        all_atoms = torch.ones_like(phi[:, :1])
        masks = [all_atoms]
        for z in new_elements:
            of_element = batch.atomic_numbers == z
            masks.append(of_element.unsqueeze(1))
        blocks = torch.cat([phi * mask for mask in masks], dim=1)  # (N, P)

        # Structures do not interact, so the sum over all of them has the derivatives of each.
        total = blocks.sum(0)
        forces = []
        stress = []
        for feature in total:
            # the next feature needs the graph again
            (slope,) = torch.autograd.grad(feature, vectors, retain_graph=True)
            feature_forces, feature_stress = forces_and_stress(
                slope, vectors.detach(), tiles, batch
            )
            forces.append(feature_forces)
            stress.append(feature_stress)
    summed = batch.sum_over_atoms(blocks.detach().double())
    return summed, torch.stack(forces), torch.stack(stress)


def _composition(
    batch: Batch, structure_index: np.ndarray, num_structures: int, elements: np.ndarray
) -> np.ndarray:
    """Numbers of atoms n_sz of each of `elements` (sorted) in each structure, (S, Z)."""
    atomic_numbers = _numpy(batch.atomic_numbers).astype(int)
    columns = np.searchsorted(elements, atomic_numbers)
    composition = np.zeros((num_structures, len(elements)))
    # unlike `composition[index] += 1`, this counts repeated indices
    np.add.at(composition, (structure_index, columns), 1.0)
    return composition


def _without_e0(
    weight_rows: np.ndarray, error: np.ndarray, noise: np.ndarray, unknowns: Unknowns
) -> Rows:
    """Rows and targets over their noise, for labels that do not depend on E0."""
    e0_columns = np.zeros((len(weight_rows), len(unknowns.elements)))
    rows = np.hstack([weight_rows, e0_columns]) / noise[:, None]
    targets = error.ravel() / noise
    return rows, targets


def _voigt(tensor: np.ndarray) -> np.ndarray:
    """Components (..., 6) in the order of VOIGT of a symmetric tensor (..., 3, 3)."""
    components = [tensor[..., row, column] for row, column in VOIGT]
    return np.stack(components, -1)


def _noise(error: np.ndarray, index: np.ndarray, num_structures: int, floor: float) -> np.ndarray:
    """Noise (S,) of the components of each structure: floor and RMS error, added in squares.

    error: (rows, components), index: (rows,) the structure of each row. NaN without a label.
    """
    labelled = np.isfinite(error).all(1)
    index = index[labelled]
    square_of_row = (error[labelled] ** 2).mean(1)

    square = np.bincount(index, square_of_row, num_structures)
    count = np.bincount(index, minlength=num_structures)
    mean_square = square / np.maximum(count, 1)
    return np.where(count > 0, np.sqrt(floor**2 + mean_square), np.nan)


def _numpy(tensor: Tensor) -> np.ndarray:
    # double precision, because the normal equations square the condition number
    return tensor.detach().cpu().double().numpy()
