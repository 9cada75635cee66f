"""Add heads to a potential: one for each level of theory. A new head starts as a copy."""

from __future__ import annotations

import numpy as np
import torch

from ..core.errors import EvenfieldError
from ..model_zoo.potential.potential import TENSORS_OF_HEADS, Potential
from .closed_form.posterior import Posterior


def with_head(potential: Potential, level_of_theory: str, like: str | None = None) -> Potential:
    """A copy of the potential that has a head for `level_of_theory`.

    An existing head does not change. A new head is a copy of the head `like`, or by default of the
    first head. Raises EvenfieldError if there is no head `like`.
    """
    levels = list(potential.config.levels_of_theory)
    if like is not None and like not in levels:
        raise EvenfieldError(
            f"'{like}' is not a level of theory of the model",
            remedy=f"name one of {', '.join(levels)}",
        )
    is_new = level_of_theory not in levels
    new_levels = [*levels, level_of_theory] if is_new else levels

    copy = Potential(potential.config.model_copy(update={"levels_of_theory": new_levels}))
    parameter = next(potential.parameters())
    copy = copy.to(device=parameter.device, dtype=parameter.dtype)

    state = potential.state_dict()
    if is_new:
        source = levels.index(like) if like is not None else 0
        for name in TENSORS_OF_HEADS:
            tensor = state[name]
            of_source = tensor[source : source + 1]
            state[name] = torch.cat([tensor, of_source])
    copy.load_state_dict(state)
    return copy.eval()


def add_to_head(
    potential: Potential,
    head: int,
    change: np.ndarray,
    new_elements: np.ndarray,
    elements: np.ndarray,
) -> None:
    """Add a change (P,) to the weights of a head, in place.

    head: index of the head.
    change: the shared weights, the own weights of each of `new_elements`, and the E0 (eV) of each
        of `elements`, end to end. If it has weights for the first features only, the weights of the
        other features do not change.
    new_elements, elements: atomic numbers.
    """
    readout = potential.readout
    num_weights = len(change) - len(elements)
    size = num_weights // (1 + len(new_elements))
    weights = change[:num_weights].reshape(-1, size)
    shared = readout.weight.new_tensor(weights[0])
    own = readout.weight.new_tensor(weights[1:])
    of_e0 = potential.e0.new_tensor(change[num_weights:])
    with torch.no_grad():
        readout.weight[head, :size] += shared
        readout.element_weight[head, new_elements, :size] += own
        potential.e0[head, elements] += of_e0


def member_levels(level: str, number: int) -> list[str]:
    """Names of the heads of an ensemble with `number` members for a level of theory."""
    return [f"{level}, member {index + 1}" for index in range(number)]


def with_ensemble(potential: Potential, posterior: Posterior) -> Potential:
    """A copy with one more head for each bootstrap refit; without any, the potential itself."""
    level = posterior.level_of_theory
    # bootstrap changes are relative to the refitted head, so every member starts as its copy
    members = member_levels(level, len(posterior.bootstrap))
    for member, change in zip(members, posterior.bootstrap, strict=True):
        potential = with_head(potential, member, level)
        head = potential.config.levels_of_theory.index(member)
        add_to_head(potential, head, change, posterior.new_elements, posterior.elements)
    return potential
