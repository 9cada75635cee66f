"""Importance weights: rare elements count more, within a stated loss of effective sample size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from ...core.settings import Settings
from .census import NUM_ELEMENTS


# atomic numbers end to end (sum N,), and where each structure begins (S + 1,)
ElementLists = tuple[np.ndarray, np.ndarray]
# the same, and the level of theory of each structure (S,)
LevelLists = tuple[np.ndarray, np.ndarray, np.ndarray]
BISECTIONS = 60


class WeightConfig(Settings):
    """How strongly rare elements are favoured, and where the weights act."""

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
    """Weight of a structure: the largest (or mean) weight of its elements, clipped, with mean 1.

    The largest is the default, because a rare element in a large cell of common ones would
    otherwise stay unseen.
    """

    def __init__(
        self, element_weight: np.ndarray, cap: float, scale: float, over: str = "max"
    ) -> None:
        """`element_weight` (119,) is clipped at `cap`, then multiplied by `scale`."""
        self.element_weight = element_weight
        self.cap = cap
        self.scale = scale
        self.over = over

    @classmethod
    def fit(
        cls, counts: np.ndarray, element_lists: Iterable[ElementLists], config: WeightConfig
    ) -> ElementWeights:
        """Weights for a data set.

        counts: (119,) structures that contain each element.
        element_lists: a sample of the data set, which fixes cap and scale.

        The cap is the largest for which the effective sample size stays above
        `min_effective_share`.
        """
        # at least 1, because 0 has no negative power
        powers = np.maximum(counts, 1.0) ** -config.beta
        element_weight = np.where(counts > 0, powers, 0.0)
        if config.beta == 0:
            return cls(element_weight, cap=1.0, scale=1.0, over=config.over)

        # weights of the sample, before they are clipped and brought to mean 1
        unscaled = cls(element_weight, cap=np.inf, scale=1.0, over=config.over)
        sampled = [unscaled(numbers, starts) for numbers, starts in element_lists]
        raw = np.concatenate(sampled)

        cap = _largest_cap(raw, config.min_effective_share)
        clipped = np.minimum(raw, cap)
        scale = 1.0 / float(clipped.mean())
        return cls(element_weight, cap, scale, config.over)

    def __call__(self, atomic_numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Weights (S,) of structures whose atoms are end to end; 1 on average over the data set."""
        if self.over == "max":
            weight_of_atom = self.element_weight[atomic_numbers]
            raw = np.maximum.reduceat(weight_of_atom, starts[:-1])
        else:
            # over the distinct elements: two atoms of one kind count once
            present = has_element(atomic_numbers, starts)
            num_elements = present.sum(1)
            raw = present @ self.element_weight / num_elements
        clipped = np.minimum(raw, self.cap)
        return clipped * self.scale

    def per_element(self) -> np.ndarray:
        """Weight of every element, (119,), on the scale of the structures' weights."""
        clipped = np.minimum(self.element_weight, self.cap)
        return clipped * self.scale

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready and exact: 0.3 kB, and 20 bytes for each element."""
        present = np.flatnonzero(self.element_weight)
        weights = {}
        for number in present:
            # JSON has text keys only, and no numbers of numpy
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
    """Importance weights of a data set: those of each level of theory, fitted to it alone.

    An element with 5 structures at one level and 160 at another is rare at the first: labels of
    another level have a head of their own. The weights of each level have mean 1, so they leave the
    shares of the levels as they are.
    """

    def __init__(
        self, by_level: Mapping[str, ElementWeights], others: ElementWeights | None = None
    ) -> None:
        """`others`: weights of levels that are not in `by_level`; by default 1."""
        self.by_level = dict(by_level)
        self.others = others

    @classmethod
    def fit(
        cls,
        counts: Mapping[str, np.ndarray],
        level_lists: Iterable[LevelLists],
        config: WeightConfig,
    ) -> LevelWeights:
        """Weights for a data set.

        counts: level of theory -> (119,) structures that contain each element.
        level_lists: a sample of the data set, as of `ElementWeights.fit`.
        """
        samples: dict[str, list[ElementLists]] = {level: [] for level in counts}
        if config.beta > 0:
            for numbers, starts, levels in level_lists:
                for level in np.unique(levels):
                    own = samples.setdefault(str(level), [])
                    own.append(of_structures(numbers, starts, levels == level))
        fitted = {}
        for level, of_level in counts.items():
            # A level of so few structures that the sample has none keeps weights of 1.
            has_weights = bool(samples[level]) or config.beta == 0
            own_config = config if has_weights else config.model_copy(update={"beta": 0.0})
            fitted[level] = ElementWeights.fit(of_level, samples[level], own_config)
        return cls(fitted)

    def __call__(
        self, atomic_numbers: np.ndarray, starts: np.ndarray, levels: np.ndarray
    ) -> np.ndarray:
        """Weights (S,) of structures whose atoms are end to end.

        levels: (S,) level of theory of each.
        """
        present = np.unique(levels)
        # the common case, one level of theory, needs no copies
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
        """JSON-ready and exact: for each level 0.3 kB, and 20 bytes for each element."""
        # checkpoints of earlier versions have weights that hold for all levels
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
    """The element lists of some structures. chosen: (S,) bool."""
    sizes = np.diff(starts)
    own_sizes = sizes[chosen]
    own_numbers = atomic_numbers[np.repeat(chosen, sizes)]
    return own_numbers, np.concatenate([[0], np.cumsum(own_sizes)])


def has_element(atomic_numbers: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Which structure contains which element, (S, 119) bool."""
    num_structures = len(starts) - 1
    sizes = np.diff(starts)
    structure_of_atom = np.repeat(np.arange(num_structures), sizes)

    present = np.zeros((num_structures, NUM_ELEMENTS), dtype=bool)
    present[structure_of_atom, atomic_numbers] = True
    return present


def effective_share(weights: np.ndarray) -> float:
    """Share of the data that a weighted sample is worth: (sum w)^2 / (n sum w^2) (Kish 1965)."""
    square_of_sum = weights.sum() ** 2
    sum_of_squares = (weights**2).sum()
    return float(square_of_sum / (len(weights) * sum_of_squares))


def _largest_cap(raw: np.ndarray, floor: float) -> float:
    """The largest cap with an effective share of at least `floor`, by bisection."""
    if effective_share(raw) >= floor:
        return float(raw.max())
    # at the lowest cap all weights are equal, and the share is 1
    low = float(raw.min())
    high = float(raw.max())
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        clipped = np.minimum(raw, middle)
        if effective_share(clipped) >= floor:
            low = middle
        else:
            high = middle
    # of the two ends, the one at which the floor holds
    return low


def num_copies(weights: np.ndarray, structure_ids: list[str], seed: int, epoch: int) -> np.ndarray:
    """How often structures appear in an epoch, (S,): floor(w + u), u in [0, 1).

    u is a hash of (structure_id, seed, epoch). The copies are unbiased (their mean over u is w),
    need no state, and are the same on every rank and after every resume.
    """
    ids = np.array(structure_ids, dtype=object)
    # pandas hashes a whole array of texts in C, with a fixed key: the same on every machine
    hash_of_id = pd.util.hash_array(ids, categorize=False)
    sequence = np.random.SeedSequence([seed, epoch])
    hash_of_epoch = sequence.generate_state(1, np.uint64)
    mixed = _mix(hash_of_id ^ hash_of_epoch)

    # the upper 53 bits are the digits of a float64
    digits = mixed >> np.uint64(11)
    uniform = digits.astype(np.float64) / 2**53
    return np.floor(weights + uniform).astype(np.int64)


def _mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    Every bit of the result depends on every bit of the input.
    """
    # the products are meant to overflow: uint64 wraps around in numpy
    bits = bits ^ (bits >> np.uint64(30))
    bits = bits * np.uint64(0xBF58476D1CE4E5B9)
    bits = bits ^ (bits >> np.uint64(27))
    bits = bits * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
