"""Every network under the conformance suite, at each size that its layers treat differently."""

from __future__ import annotations

import pytest
import torch

from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.network.architectures import ARCHITECTURES
from evenfield.testing import ConformanceError, PotentialConformance, check_model
from evenfield.testing.conformance import check_forces_are_central_differences, prepared


def perturbed(potential: Potential) -> Potential:
    """Reference energies and element weights that are not zero, as after training."""
    potential.e0[:] = -3.0
    potential.readout.element_weight.data.normal_(std=0.1)
    return potential


class TestDefault(PotentialConformance):
    def potential(self) -> Potential:
        config = PotentialConfig(channels=8, cutoff=4.5, readout_size=16, radial_hidden=16)
        return perturbed(Potential(config))


class TestThreeLayersHighDegree(PotentialConformance):
    def potential(self) -> Potential:
        config = PotentialConfig(
            channels=4,
            l_max=4,
            l_hidden=2,
            num_layers=3,
            correlation=4,
            angular_factors=True,
            cutoff=4.0,
        )
        return perturbed(Potential(config))


class TestOneLayerScalars(PotentialConformance):
    def potential(self) -> Potential:
        config = PotentialConfig(
            channels=8, l_max=1, l_hidden=0, num_layers=1, correlation=1, cutoff=4.0
        )
        return perturbed(Potential(config))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_conforms(architecture: str) -> None:
    """A line in the registry is enough to be checked."""
    config = PotentialConfig(architecture=architecture, channels=8, cutoff=4.0, readout_size=16)
    check_model(lambda: perturbed(Potential(config)))


class WrongSign(Potential):
    """Forces are +dE/dr."""

    def forward(self, batch):
        prediction = super().forward(batch)
        return prediction.with_labels(forces=-prediction.forces)


def test_the_suite_catches_a_wrong_sign() -> None:
    def make() -> Potential:
        return WrongSign(PotentialConfig(channels=4, cutoff=4.0))

    with pytest.raises(ConformanceError, match="differs from the slope of the energy"):
        check_forces_are_central_differences(prepared(make, torch.float64))
    with pytest.raises(ConformanceError, match=r"checks failed\n(.*\n)*check_forces_are_central"):
        check_model(make)
