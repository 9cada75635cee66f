"""What is stored about the uncertainty of a model, as an attachment of its folder.

    uncertainty.safetensors   arrays of each level of theory, named LEVEL/NAME with LEVEL counted
                              from 0; the metadata hold the format, the digest of the potential,
                              and the levels with their scalars

It holds for exactly these weights: the metadata name their digest, and a record of others counts as
none. With 64 features a level takes 2.3 kB for each element, up to 8 kB for each group of elements
with radii of its own, and 4 (64 + E)^2 bytes for the covariance of weights and E0 of E elements:
0.34 MB for mp_pbe of evenfield-1 with 85 elements. The stress adds at most 8 kB. All about it is in
arrays that older records lack, and that older versions of this file do not read.
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

# what the predicted spread of the force on an atom is made of; see `LevelUncertainty.spread`
INGREDIENTS = ("force", "committee", "energy", "distance")
# the same of the stress; see `StressUncertainty`
STRESS_INGREDIENTS = ("stress", "committee", "energy", "distance")


class _LevelFacts(Settings):
    """What the metadata say of a level of theory."""

    level: str = Field(description="level of theory")
    calibrated_on: str = Field(description="split whose structures gave the scores")
    energy_scale: float = Field(gt=0, description="factor of the deviations of energies")
    alignment: float = Field(ge=0, le=1, description="share of the variance along the committee")
    groups: list[list[int]] = Field(description="atomic numbers of each group of elements")
    numbers: list[int] = Field(description="scores of each group, the last of the energies")
    structures: list[int] = Field(description="independent structures of each")


class _RecordFacts(Settings):
    """What the metadata hold."""

    format: int = Field(ge=1, le=1, description="format of the file")
    potential: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the potential")
    levels: list[_LevelFacts] = Field(description="one entry for each level of theory")


@dataclass(frozen=True)
class StressUncertainty:
    """Radii of the stress of structures that are periodic in three directions.

    An error is the Frobenius norm of the difference of two symmetric tensors: a ball in the six
    independent components, with the off-diagonal ones counted twice. Unlike the largest component,
    it does not change when the cell is turned. No component is off by more than the radius R, and
    the pressure by no more than R / sqrt(3).
    """

    exponents: np.ndarray
    """(4,) of the `STRESS_INGREDIENTS`, none negative."""
    floors: np.ndarray
    """(4,) added to the ingredients: eV/A^3 for the first three, and without a unit."""
    offset: float
    """Logarithm of the spread where ingredients and floors add up to 1."""
    scores: Scores

    def spread(self, ingredients: np.ndarray) -> np.ndarray:
        """Predicted size of the error of the stress of each structure (S,), in eV/A^3.

        ingredients (4, S): size of the stress; deviation of the committee; deviation of the energy
        by the posterior over the volume, all in eV/A^3; and mean distance of the atoms.
        """
        offsets = np.full(ingredients.shape[1], self.offset)
        return _product_of_powers(ingredients, self.floors, self.exponents, offsets)


@dataclass(frozen=True)
class LevelUncertainty:
    """The uncertainty of one level of theory: d features, K directions, G groups of elements."""

    level: str
    calibrated_on: str
    """The split whose structures gave the scores."""
    factor: np.ndarray
    """(P, P) lower Cholesky factor of the posterior covariance of the d weights and the E0."""
    e0_elements: np.ndarray
    """(P - d,) atomic numbers of the E0."""
    directions: np.ndarray
    """(K, d) differences of weights, by how much they change forces: sum_k of their squares is
    the variance over the M members of the committee."""
    mixing: np.ndarray
    """(M, K): member m differs from the model by the sum over k of mixing[m, k] directions[k]."""
    gaussians: ElementGaussians
    exponents: np.ndarray
    """(4,) of the `INGREDIENTS` of the spread, none negative."""
    offsets: np.ndarray
    """(119,) logarithm of the spread of each element where all ingredients are at their floor."""
    floors: np.ndarray
    """(4,) added to the ingredients, in eV/A, eV/A, eV, and without a unit."""
    groups: list[np.ndarray]
    """(G) atomic numbers with radii of their own; the last group is that of all other elements."""
    force_scores: list[Scores]
    """(G)"""
    energy_scores: Scores
    energy_scale: float
    """By which the deviation of the posterior is multiplied, so that it covers 68 % of errors."""
    alignment: float
    """Share of the variance of a force that lies where the committee differs."""
    stress: StressUncertainty | None = None
    """None where too few structures with a stress were held out, and in older records."""

    def spread(self, ingredients: np.ndarray, atomic_numbers: np.ndarray) -> np.ndarray:
        """Predicted size of the error of the force on each atom (N,), in eV/A.

        ingredients (4, N): size of the force, deviation of the committee, both in eV/A, deviation
        of the energy of the atom by the posterior in eV, and distance. The spread is a product of
        powers, so that none of them can lower it.
        """
        offsets = self.offsets[atomic_numbers]
        return _product_of_powers(ingredients, self.floors, self.exponents, offsets)

    def group_of(self, atomic_numbers: np.ndarray) -> np.ndarray:
        """The place of the group of each atom (N,)."""
        place = np.full(MAX_ATOMIC_NUMBER + 1, len(self.groups) - 1)
        for index, elements in enumerate(self.groups[:-1]):
            place[elements] = index
        return place[atomic_numbers]

    def force_quantiles(self, coverage: float) -> np.ndarray:
        """Radius over spread for each group (G,)."""
        return np.array([scores.quantile(coverage) for scores in self.force_scores])


def _product_of_powers(
    ingredients: np.ndarray, floors: np.ndarray, exponents: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """exp(offset) times the powers of the ingredients (4, N); infinite where one of them is not
    finite."""
    # an element that was never seen is infinitely far
    known = np.isfinite(ingredients).all(0)
    logarithms = np.log(np.where(known, ingredients, 1.0) + floors[:, None])
    return np.where(known, np.exp(offsets + exponents @ logarithms), np.inf)


def level_digest(own: LevelUncertainty) -> str:
    """sha256 of all that is stored of a level: other radii have another digest."""
    digest = hashlib.sha256(_facts_of(own).model_dump_json().encode())
    for name, array in sorted(_stored_arrays(own).items()):
        digest.update(f"{name} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def uncertainty_file(potential: Potential, levels: Mapping[str, LevelUncertainty]) -> bytes:
    """The content of the attachment, for these weights."""
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
    """What the metadata say of one level."""
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
    """Name -> array of one level, as they are stored."""
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
    # six digits are more than any estimate of an error has
    return {
        name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
        for name, array in arrays.items()
    }


def uncertainties_of(
    potential: Potential, attachments: Mapping[str, bytes]
) -> dict[str, LevelUncertainty]:
    """Level of theory -> its uncertainty, for the levels of a model that have one.

    Attachments are free in form: whatever is not such a record of these weights is none.
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
    """One level from its arrays. Raises KeyError and ValueError for arrays that do not fit."""
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
    """The part about the stress; None where there is none. Raises KeyError and ValueError."""
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
