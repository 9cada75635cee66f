"""Random rows appended to the hidden layer of the readout, so that the refit has more features.

Their output weights are zero, so the potential predicts what it did before. The refit decides how
many of them are of use, and the others are cut off again.
"""

from __future__ import annotations

import torch

from ...model_zoo.potential.potential import Potential


# Standard deviation of the biases of random rows.
BIAS_SPREAD = 0.5
# Tensors of the readout, and their dimension that counts its features.
FEATURE_DIMENSION = {
    "readout.hidden.weight": 0,
    "readout.hidden.bias": 0,
    "readout.weight": 1,
    "readout.element_weight": 2,
}


def widened(potential: Potential, number: int, seed: int) -> Potential:
    """A copy with `number` further features, whose output weights are zero.

    The weights of the random rows have the standard deviation of the trained ones.
    """
    state = potential.state_dict()
    trained = state["readout.hidden.weight"]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(number, trained.shape[1], generator=generator, dtype=torch.float32)
    biases = torch.randn(number, generator=generator, dtype=torch.float32)

    for name, dimension in FEATURE_DIMENSION.items():
        shape = list(state[name].shape)
        shape[dimension] = number
        added = state[name].new_zeros(shape)
        if name == "readout.hidden.weight":
            added.copy_(rows * trained.std().cpu())
        elif name == "readout.hidden.bias":
            added.copy_(biases * BIAS_SPREAD)
        state[name] = torch.cat([state[name], added], dim=dimension)
    return _of_size(potential, potential.config.readout_size + number, state)


def narrowed(potential: Potential, size: int) -> Potential:
    """A copy with only the first `size` features."""
    state = potential.state_dict()
    for name, dimension in FEATURE_DIMENSION.items():
        state[name] = state[name].narrow(dimension, 0, size)
    return _of_size(potential, size, state)


def _of_size(potential: Potential, size: int, state: dict[str, torch.Tensor]) -> Potential:
    """A potential like this one, with `size` features and the weights of `state`."""
    copy = Potential(potential.config.model_copy(update={"readout_size": size}))
    parameter = next(potential.parameters())
    copy = copy.to(device=parameter.device, dtype=parameter.dtype)
    copy.load_state_dict(state)
    return copy.eval()
