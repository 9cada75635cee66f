"""Heads: one per level of theory; a new level starts as a copy of an old one, and nothing old is changed."""

from __future__ import annotations

import numpy as np
import torch

from ..model_zoo.potential.potential import Potential
from .closed_form.posterior import Posterior


def with_head(potential: Potential, level_of_theory: str, like: str | None = None) -> Potential:
    """A copy of the potential that has a head for `level_of_theory`, started from the head `like` (or the first).

    A level that the model has already is kept as it is. Raises ValueError when it has no head `like`.
    """
    levels = list(potential.config.levels_of_theory)
    new_levels = levels if level_of_theory in levels else [*levels, level_of_theory]
    if like is not None and like not in levels:
        raise ValueError(
            f"'{like}' is not a level of theory of the model; it has: {', '.join(levels)}"
        )
    source = levels.index(like) if like else 0
    copy = Potential(potential.config.model_copy(update={"levels_of_theory": new_levels}))
    parameter = next(potential.parameters())
    copy = copy.to(device=parameter.device, dtype=parameter.dtype)
    state = potential.state_dict()
    for name in ("readout.weight", "readout.element_weight", "repulsion.log_factor", "e0", "scale"):
        if len(new_levels) > len(levels):
            state[name] = torch.cat([state[name], state[name][source : source + 1]])
    copy.load_state_dict(state)
    return copy.eval()


def add_to_head(
    potential: Potential,
    head: int,
    change: np.ndarray,
    new_elements: np.ndarray,
    elements: np.ndarray,
) -> None:
    """Add to a head in place: shared weights, own weights of new elements, E0, end to end (P,)."""
    readout = potential.readout
    size = readout.weight.shape[1]
    num_weights = size * (1 + len(new_elements))
    weights = change[:num_weights].reshape(-1, size)
    with torch.no_grad():
        readout.weight[head] += readout.weight.new_tensor(weights[0])
        readout.element_weight[head, new_elements] += readout.weight.new_tensor(weights[1:])
        potential.e0[head, elements] += potential.e0.new_tensor(change[num_weights:])


def member_levels(level: str, number: int) -> list[str]:
    """Names of the heads of an ensemble for a level of theory."""
    return [f"{level}, member {k + 1}" for k in range(number)]


def with_ensemble(potential: Potential, posterior: Posterior) -> Potential:
    """A copy with a further head for each bootstrap refit of the posterior; without any, the potential itself."""
    for member, change in zip(
        member_levels(posterior.level_of_theory, len(posterior.bootstrap)),
        posterior.bootstrap,
        strict=True,
    ):
        potential = with_head(potential, member, posterior.level_of_theory)
        head = potential.config.levels_of_theory.index(member)
        add_to_head(potential, head, change, posterior.new_elements, posterior.elements)
    return potential
