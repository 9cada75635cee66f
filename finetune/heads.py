"""Heads: one per level of theory; a new level starts as a copy of an old one, and nothing old is changed."""

from __future__ import annotations

import torch

from ..model_zoo.potential import Potential


def with_head(potential: Potential, level_of_theory: str, like: str | None = None) -> Potential:
    """A copy of the potential that has a head for `level_of_theory`, started from the head `like` (or the first).

    A level that the model has already is kept as it is. Raises ValueError when it has no head `like`.
    """
    levels = list(potential.config.levels_of_theory)
    new_levels = levels if level_of_theory in levels else [*levels, level_of_theory]
    if like is not None and like not in levels:
        raise ValueError(f"'{like}' is not a level of theory of the model; it has: {', '.join(levels)}")
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
