"""The stored uncertainty record of a model, an attachment of its folder.

    uncertainty.safetensors   arrays of each level of theory, named LEVEL/NAME with LEVEL counted
                              from 0; the metadata hold the format, the digest of the potential,
                              and the levels with their scalars

A record is valid only for the weights whose digest the metadata state. A record for other weights
is ignored.

With 64 features, a level takes 2.3 kB per element, up to 8 kB per group of elements with its own
radii, and 4 (64 + E)^2 bytes for the covariance of the weights and the E0 of E elements. This makes
0.34 MB for mp_pbe of evenfield-1 with 85 elements. The stress adds at most 8 kB. Its arrays are
optional: older records lack them, and older versions of this file do not read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from ...core.settings import Settings
from ..network.interface import MAX_ATOMIC_NUMBER
from ..package.arrays import arrays_file
from ..package.sanity_record import potential_digest
from ..package.weights import metadata
from ..potential.potential import Potential
from .conformal import Scores
from .distances import ElementGaussians


UNCERTAINTY = "uncertainty.safetensors"
REMEDY = "make it with `evenfield finetune attach MODEL DATA`"

# the inputs of the predicted force spread; see `LevelUncertainty.spread`
INGREDIENTS = ("force", "committee", "energy", "distance")
# the inputs of the predicted stress spread; see `StressUncertainty.spread`
STRESS_INGREDIENTS = ("stress", "committee", "energy", "distance")


class _LevelFacts(Settings):
    """The part of the metadata about one level of theory."""

    level: str = Field(description="level of theory")
    calibrated_on: str = Field(description="split whose structures gave the scores")
    energy_scale: float = Field(gt=0, description="factor of the deviations of energies")
    alignment: float = Field(ge=0, le=1, description="share of the variance along the committee")
    groups: list[list[int]] = Field(description="atomic numbers of each group of elements")
    numbers: list[int] = Field(description="scores of each group, the last of the energies")
    structures: list[int] = Field(description="independent structures of each")


class _RecordFacts(Settings):
    """The content of the metadata."""

    format: int = Field(ge=1, le=1, description="format of the file")
    potential: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the potential")
    levels: list[_LevelFacts] = Field(description="one entry for each level of theory")


@dataclass(frozen=True)
class StressUncertainty:
    """Radii for the stress of structures that are periodic in three directions.

    The error is the Frobenius norm of the difference between two symmetric tensors, in which
    off-diagonal components count twice. Unlike the largest component, this norm does not change
    when the cell is rotated. Within a radius R, no component is off by more than R, and the
    pressure is off by at most R / sqrt(3).
    """

    exponents: np.ndarray
    """(4,) exponents of the `STRESS_INGREDIENTS`, none negative."""
    floors: np.ndarray
    """(4,) added to the ingredients; the first three are in eV/A^3, the last has no unit."""
    offset: float
    """Logarithm of the spread if every ingredient plus its floor is 1."""
    scores: Scores

    def spread(self, ingredients: np.ndarray) -> np.ndarray:
        """Predicted size (S,) in eV/A^3 of the stress error of each structure.

        `ingredients` (4, S) are the norm of the stress, the committee deviation, the posterior
        deviation of the energy divided by the volume, all in eV/A^3, and the mean distance of the
        atoms.
        """
        offsets = np.full(ingredients.shape[1], self.offset)
        return _product_of_powers(ingredients, self.floors, self.exponents, offsets)


@dataclass(frozen=True)
class LevelUncertainty:
    """The uncertainty of one level of theory.

    Shapes: d features, K committee directions, M committee members, G groups of elements, and P
    weights and reference energies E0 in all.
    """

    level: str
    calibrated_on: str
    """The split whose structures gave the scores."""
    factor: np.ndarray
    """(P, P) lower Cholesky factor of the posterior covariance of the d weights and the E0."""
    e0_elements: np.ndarray
    """(P - d,) atomic numbers of the elements whose E0 are included."""
    directions: np.ndarray
    """(K, d) weight differences, ordered by their effect on forces. The sum over k of the squared
    force changes is the variance over the M committee members."""
    mixing: np.ndarray
    """(M, K): member m differs from the model by the sum over k of mixing[m, k] directions[k]."""
    gaussians: ElementGaussians
    exponents: np.ndarray
    """(4,) exponents of the `INGREDIENTS` in the spread, none negative."""
    offsets: np.ndarray
    """(119,) logarithm of the prefactor of the spread, for each element."""
    floors: np.ndarray
    """(4,) added to the ingredients, in eV/A, eV/A and eV; the last has no unit."""
    groups: list[np.ndarray]
    """G arrays of atomic numbers; each group has its own radii. The last group stands for all other
    elements."""
    force_scores: list[Scores]
    """The force scores of each of the G groups."""
    energy_scores: Scores
    energy_scale: float
    """Factor on the posterior deviation of energies, such that it covers 68 % of errors."""
    alignment: float
    """Share of the force variance that follows the directions in which the committee differs."""
    stress: StressUncertainty | None = None
    """None if too few structures with a stress were held out, and in older records."""

    def spread(self, ingredients: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        """Predicted size (N,) in eV/A of the force error of each atom.

        `ingredients` (4, N) are the norm of the force and the committee deviation in eV/A, the
        posterior deviation of the atomic energy in eV, and the distance. The spread is a product of
        powers with non-negative exponents, so it never decreases as an ingredient grows.
        """
        offsets = self.offsets[atomic_numbers]
        return _product_of_powers(ingredients, self.floors, self.exponents, offsets)

    def group_of(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """The index into `groups` of each atom, (N,)."""
        place = np.full(MAX_ATOMIC_NUMBER + 1, len(self.groups) - 1)
        for index, elements in enumerate(self.groups[:-1]):
            place[elements] = index
        return place[atomic_numbers]

    def force_quantiles(self, coverage: float) -> np.ndarray:
        """The ratio of radius to spread for each group, (G,)."""
        return np.array([scores.quantile(coverage) for scores in self.force_scores])


def _product_of_powers(
    ingredients: np.ndarray, floors: np.ndarray, exponents: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """exp(offset) times the product of powers of ingredients (4, N) plus floors; (N,).

    The result is infinite wherever an ingredient is not finite.
    """
    # an atom of an unseen element has an infinite distance
    known = np.isfinite(ingredients).all(0)
    logarithms = np.log(np.where(known, ingredients, 1.0) + floors[:, None])
    return np.where(known, np.exp(offsets + exponents @ logarithms), np.inf)


def level_digest(own: LevelUncertainty) -> str:
    """The sha256 of everything stored for a level. Different radii have different digests."""
    digest = hashlib.sha256(_facts_of(own).model_dump_json().encode())
    for name, array in sorted(_stored_arrays(own).items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def uncertainty_file(potential: Potential, levels: Mapping[str, LevelUncertainty]) -> bytes:
    """The content of the attachment for the weights of `potential`."""
    tensors: dict[str, np.ndarray] = {}
    facts = []
    for index, own in enumerate(levels.values()):
        for name, array in _stored_arrays(own).items():
            tensors[f"{index}/{name}"] = array
        facts.append(_facts_of(own))
    about = _RecordFacts(format=1, potential=potential_digest(potential), levels=facts)
    return arrays_file(tensors, about.model_dump_json())


_ARRAYS = (
    "factor",
    "e0_elements",
    "directions",
    "mixing",
    "exponents",
    "offsets",
    "floors",
)
_GAUSSIAN_ARRAYS = tuple(field.name for field in fields(ElementGaussians))
_STRESS_ARRAYS = ("exponents", "floors", "offset", "scores", "ranks", "counts")


def _facts_of(own: LevelUncertainty) -> _LevelFacts:
    """The metadata of one level."""
    all_scores = [*own.force_scores, own.energy_scores]
    return _LevelFacts(
        level=own.level,
        calibrated_on=own.calibrated_on,
        energy_scale=own.energy_scale,
        alignment=own.alignment,
        groups=[elements.tolist() for elements in own.groups],
        numbers=[scores.number for scores in all_scores],
        structures=[scores.structures for scores in all_scores],
    )


def _stored_arrays(own: LevelUncertainty) -> dict[str, np.ndarray]:
    """The arrays of one level by name, in their stored form."""
    arrays = {name: getattr(own, name) for name in _ARRAYS}
    arrays |= {name: getattr(own.gaussians, name) for name in _GAUSSIAN_ARRAYS}
    for group, scores in enumerate([*own.force_scores, own.energy_scores]):
        arrays[f"scores.{group}"] = scores.values
        arrays[f"ranks.{group}"] = scores.ranks
    if own.stress is not None:
        scores = own.stress.scores
        arrays |= {
            "stress.exponents": own.stress.exponents,
            "stress.floors": own.stress.floors,
            "stress.offset": np.array([own.stress.offset]),
            "stress.scores": scores.values,
            "stress.ranks": scores.ranks,
            "stress.counts": np.array([scores.number, scores.structures]),
        }
    # float32 is enough: no error estimate is accurate to six digits
    return {
        name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
        for name, array in arrays.items()
    }


def uncertainties_of(
    potential: Potential, attachments: Mapping[str, bytes]
) -> dict[str, LevelUncertainty]:
    """Map levels of theory to their uncertainties. Levels without a record are left out.

    Attachments have no fixed format, so a file that is not a valid record of these weights is
    ignored.
    """
    content = attachments.get(UNCERTAINTY)
    if content is None:
        return {}
    try:
        about = _RecordFacts.model_validate(metadata(content))
        if about.potential != potential_digest(potential):
            return {}
        tensors = load(content)
        levels = {}
        for index, facts in enumerate(about.levels):
            prefix = f"{index}/"
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            levels[facts.level] = _level(facts, own, potential.config.readout_size)
    except (ValidationError, SafetensorError, KeyError, ValueError):
        return {}
    return levels


def _level(facts: _LevelFacts, tensors: dict[str, np.ndarray], size: int) -> LevelUncertainty:
    """Build one level from its arrays. Raises KeyError or ValueError if they do not fit."""
    wide = {
        name: tensor.astype(np.float64 if tensor.dtype.kind == "f" else np.int64)
        for name, tensor in tensors.items()
    }
    scores = [
        Scores(wide[f"scores.{group}"], wide[f"ranks.{group}"], number, structures)
        for group, (number, structures) in enumerate(
            zip(facts.numbers, facts.structures, strict=True)
        )
    ]
    gaussians = ElementGaussians(**{name: wide[name] for name in _GAUSSIAN_ARRAYS})
    own = LevelUncertainty(
        level=facts.level,
        calibrated_on=facts.calibrated_on,
        energy_scale=facts.energy_scale,
        alignment=facts.alignment,
        gaussians=gaussians,
        groups=[np.array(elements, dtype=int) for elements in facts.groups],
        force_scores=scores[:-1],
        energy_scores=scores[-1],
        stress=_stress(wide),
        **{name: wide[name] for name in _ARRAYS},
    )
    num_directions = len(own.directions)
    num_elements = len(gaussians.elements)
    rank = gaussians.variances.shape[1]
    expected = {
        "factor": (size + len(own.e0_elements), size + len(own.e0_elements)),
        "directions": (num_directions, size),
        "mixing": (len(own.mixing), num_directions),
        "exponents": (len(INGREDIENTS),),
        "floors": (len(INGREDIENTS),),
        "offsets": (MAX_ATOMIC_NUMBER + 1,),
        "means": (num_elements, size),
        "whitening": (size, size),
        "axes": (num_elements, rank, size),
        "variances": (num_elements, rank),
        "remainder": (num_elements,),
        "thresholds": (num_elements,),
    }
    for name, shape in expected.items():
        if wide[name].shape != shape:
            raise ValueError(f"{name} has the shape {wide[name].shape} instead of {shape}")
    if (
        len(own.groups) != len(own.force_scores)
        or not 0 <= gaussians.elements.max() <= MAX_ATOMIC_NUMBER
    ):
        raise ValueError("groups and scores, or elements, do not fit")
    return own


def _stress(wide: dict[str, np.ndarray]) -> StressUncertainty | None:
    """Build the stress part from its arrays; None if there is none.

    Raises KeyError or ValueError if the arrays do not fit.
    """
    if not any(name.startswith("stress.") for name in wide):
        return None
    found = {name: wide[f"stress.{name}"] for name in _STRESS_ARRAYS}
    expected = {
        "exponents": (len(STRESS_INGREDIENTS),),
        "floors": (len(STRESS_INGREDIENTS),),
        "offset": (1,),
        "scores": found["ranks"].shape,
        "counts": (2,),
    }
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"stress.{name} has the shape {found[name].shape} instead of {shape}")
    number, structures = found["counts"].tolist()
    return StressUncertainty(
        exponents=found["exponents"],
        floors=found["floors"],
        offset=float(found["offset"][0]),
        scores=Scores(found["scores"], found["ranks"], number, structures),
    )
