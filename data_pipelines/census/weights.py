"""Importance weights: rare elements count more, within a limited loss of effective sample size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from ...core.settings import Settings
from .census import NUM_ELEMENTS


# concatenated atomic numbers (sum N,), and the offset of each structure (S + 1,)
ElementLists = tuple[np.ndarray, np.ndarray]
# as ElementLists, plus the level of theory of each structure (S,)
LevelLists = tuple[np.ndarray, np.ndarray, np.ndarray]
BISECTIONS = 60


class WeightConfig(Settings):
    """How strongly rare elements are favoured, and where the weights are applied."""

    beta: float = Field(
        default=0.0, ge=0, le=1, description="a_z ~ n_z^-beta; 0 weights all structures alike"
    )
    over: Literal["max", "mean"] = Field(
        default="max",
        description="a structure's weight is the largest of its elements', or their mean",
    )
    min_effective_share: float = Field(
        default=0.4, gt=0, le=1, description="floor of (sum w)^2 / (n sum w^2)"
    )
    sampling: bool = Field(
        default=True, description="a structure of weight w is seen w times an epoch"
    )
    loss: bool = Field(default=False, description="per-atom force errors are weighted by element")


class ElementWeights:
    """Weights of structures: the largest (or mean) weight of their elements, clipped, with mean 1.

    The largest weight is the default. With the mean, a rare element among many common elements
    would hardly count.
    """

    def __init__(
        self, element_weight: np.ndarray, cap: float, scale: float, over: str = "max"
    ) -> None:
        """Weights from `element_weight` (119,), clipped at `cap` and then multiplied by `scale`.

        over: "max" for the largest weight of a structure's elements, "mean" for their mean.
        """
        self.element_weight = element_weight
        self.cap = cap
        self.scale = scale
        self.over = over

    @classmethod
    def fit(
        cls, counts: np.ndarray, element_lists: Iterable[ElementLists], config: WeightConfig
    ) -> ElementWeights:
        """Fit weights to a data set.

        counts: (119,) number of structures that contain each element.
        element_lists: a sample of the data set, which determines the cap and the scale.

        The cap is the largest value for which the effective share of the sample stays above
        `min_effective_share`.
        """
        # at least 1, because a negative power of 0 is infinite
        powers = np.maximum(counts, 1.0) ** -config.beta
        element_weight = np.where(counts > 0, powers, 0.0)
        if config.beta == 0:
            return cls(element_weight, cap=1.0, scale=1.0, over=config.over)

        # weights of the sample, before they are clipped and scaled to a mean of 1
        unscaled = cls(element_weight, cap=np.inf, scale=1.0, over=config.over)
        sampled = [unscaled(numbers, starts) for numbers, starts in element_lists]
        raw = np.concatenate(sampled)

        cap = _largest_cap(raw, config.min_effective_share)
        clipped = np.minimum(raw, cap)
        scale = 1.0 / float(clipped.mean())
        return cls(element_weight, cap, scale, config.over)

    def __call__(self, atomic_numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Weights (S,) of structures; their mean over the data set is 1.

        atomic_numbers: (sum N,) of all structures, concatenated. starts: (S + 1,) offsets.
        """
        if self.over == "max":
            weight_of_atom = self.element_weight[atomic_numbers]
            raw = np.maximum.reduceat(weight_of_atom, starts[:-1])
        else:
            # the mean is over distinct elements, so the number of atoms does not matter
            present = has_element(atomic_numbers, starts)
            num_elements = present.sum(1)
            raw = present @ self.element_weight / num_elements
        clipped = np.minimum(raw, self.cap)
        return clipped * self.scale

    def per_element(self) -> np.ndarray:
        """Weight of every element, (119,), on the same scale as the weights of structures."""
        clipped = np.minimum(self.element_weight, self.cap)
        return clipped * self.scale

    def to_dict(self) -> dict[str, Any]:
        """The weights as JSON content, without loss: 0.3 kB plus 20 bytes for each element."""
        present = np.flatnonzero(self.element_weight)
        weights = {}
        for number in present:
            # JSON needs string keys and Python floats
            weights[str(number)] = float(self.element_weight[number])
        return {
            "element_weight": weights,
            "cap": self.cap,
            "scale": self.scale,
            "over": self.over,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ElementWeights:
        """The inverse of `to_dict`."""
        element_weight = np.zeros(NUM_ELEMENTS)
        for number, weight in content["element_weight"].items():
            element_weight[int(number)] = weight
        return cls(element_weight, content["cap"], content["scale"], content["over"])


class LevelWeights:
    """Importance weights of a data set, fitted to each level of theory separately.

    Each level has its own head, so an element with 5 structures at one level and 160 at another is
    rare at the first level. The weights of each level have a mean of 1, so they do not change the
    relative sizes of the levels.
    """

    def __init__(
        self, by_level: Mapping[str, ElementWeights], others: ElementWeights | None = None
    ) -> None:
        """Weights by level of theory; `others` are for levels not in `by_level`, by default 1."""
        self.by_level = dict(by_level)
        self.others = others

    @classmethod
    def fit(
        cls,
        counts: Mapping[str, np.ndarray],
        level_lists: Iterable[LevelLists],
        config: WeightConfig,
    ) -> LevelWeights:
        """Fit weights to a data set.

        counts: level of theory -> (119,) number of structures that contain each element.
        level_lists: a sample of the data set, as in `ElementWeights.fit`, with levels.
        """
        samples: dict[str, list[ElementLists]] = {level: [] for level in counts}
        if config.beta > 0:
            for numbers, starts, levels in level_lists:
                for level in np.unique(levels):
                    own = samples.setdefault(str(level), [])
                    own.append(of_structures(numbers, starts, levels == level))
        fitted = {}
        for level, of_level in counts.items():
            # a level that is too small to occur in the sample keeps weights of 1
            has_weights = bool(samples[level]) or config.beta == 0
            own_config = config if has_weights else config.model_copy(update={"beta": 0.0})
            fitted[level] = ElementWeights.fit(of_level, samples[level], own_config)
        return cls(fitted)

    def __call__(
        self, atomic_numbers: np.ndarray, starts: np.ndarray, levels: np.ndarray
    ) -> np.ndarray:
        """Weights (S,) of structures.

        atomic_numbers: (sum N,) of all structures, concatenated. starts: (S + 1,) offsets.
        levels: (S,) level of theory of each structure.
        """
        present = np.unique(levels)
        # avoid copies in the common case of a single level
        if len(present) == 1:
            return self.of_level(str(present[0]))(atomic_numbers, starts)
        weights = np.ones(len(levels))
        for level in present:
            own = levels == level
            weights[own] = self.of_level(str(level))(*of_structures(atomic_numbers, starts, own))
        return weights

    def of_level(self, level: str) -> ElementWeights:
        """The weights of one level of theory."""
        found = self.by_level.get(level, self.others)
        return found or ElementWeights(np.ones(NUM_ELEMENTS), cap=1.0, scale=1.0)

    def to_dict(self) -> dict[str, Any]:
        """The weights as JSON content, without loss: 0.3 kB per level, and 20 bytes per element."""
        # checkpoints of earlier versions have a single set of weights for all levels
        if self.others is not None:
            return self.others.to_dict()
        return {"levels": {level: own.to_dict() for level, own in self.by_level.items()}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LevelWeights:
        """The inverse of `to_dict`."""
        if "levels" not in content:
            return cls({}, ElementWeights.from_dict(content))
        levels = content["levels"]
        return cls({level: ElementWeights.from_dict(own) for level, own in levels.items()})


def of_structures(
    atomic_numbers: np.ndarray, starts: np.ndarray, chosen: np.ndarray
) -> ElementLists:
    """The element lists of the structures for which `chosen` (S,) is True."""
    sizes = np.diff(starts)
    own_sizes = sizes[chosen]
    own_numbers = atomic_numbers[np.repeat(chosen, sizes)]
    return own_numbers, np.concatenate([[0], np.cumsum(own_sizes)])


def has_element(atomic_numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Whether each structure contains each element, (S, 119) bool."""
    num_structures = len(starts) - 1
    sizes = np.diff(starts)
    structure_of_atom = np.repeat(np.arange(num_structures), sizes)

    present = np.zeros((num_structures, NUM_ELEMENTS), dtype=bool)
    present[structure_of_atom, atomic_numbers] = True
    return present


def effective_share(weights: np.ndarray) -> float:
    """Effective sample size as a fraction of n: (sum w)^2 / (n sum w^2) (Kish 1965)."""
    square_of_sum = weights.sum() ** 2
    sum_of_squares = (weights**2).sum()
    return float(square_of_sum / (len(weights) * sum_of_squares))


def _largest_cap(raw: np.ndarray, floor: float) -> float:
    """The largest cap with an effective share of at least `floor`, found by bisection."""
    if effective_share(raw) >= floor:
        return float(raw.max())
    # at the lowest cap, all weights are equal and the effective share is 1
    low = float(raw.min())
    high = float(raw.max())
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        clipped = np.minimum(raw, middle)
        if effective_share(clipped) >= floor:
            low = middle
        else:
            high = middle
    # the lower end satisfies the floor, the upper end need not
    return low


def num_copies(weights: np.ndarray, structure_ids: list[str], seed: int, epoch: int) -> np.ndarray:
    """Number of times that each structure appears in an epoch, (S,): floor(w + u), u in [0, 1).

    u is a hash of (structure_id, seed, epoch). The numbers are unbiased (their mean over u is w).
    They need no state, and are the same on every rank and after every resume.
    """
    ids = np.array(structure_ids, dtype=object)
    # pandas hashes a whole array in C, and its fixed key gives the same result on every machine
    hash_of_id = pd.util.hash_array(ids, categorize=False)
    sequence = np.random.SeedSequence([seed, epoch])
    hash_of_epoch = sequence.generate_state(1, np.uint64)
    mixed = _mix(hash_of_id ^ hash_of_epoch)

    # the upper 53 bits, as many as a float64 has in its mantissa
    digits = mixed >> np.uint64(11)
    uniform = digits.astype(np.float64) / 2**53
    return np.floor(weights + uniform).astype(np.int64)


def _mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    Every bit of the result depends on every bit of the input.
    """
    # the products overflow on purpose: numpy's uint64 wraps around
    bits = bits ^ (bits >> np.uint64(30))
    bits = bits * np.uint64(0xBF58476D1CE4E5B9)
    bits = bits ^ (bits >> np.uint64(27))
    bits = bits * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
