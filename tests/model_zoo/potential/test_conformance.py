"""Our potential under the conformance suite, at each size that the layers treat differently."""

from __future__ import annotations

import pytest

from evenfield.model_zoo import Potential, PotentialConfig

from conformance import PotentialConformance, PotentialConformance64


class TestDefault(PotentialConformance):
    cutoff = 4.5

    def potential(self) -> Potential:
        config = PotentialConfig(channels=8, cutoff=self.cutoff, readout_size=16, radial_hidden=16)
        return perturbed(Potential(config))


class TestDefault64(PotentialConformance64):
    cutoff = 4.5
    potential = TestDefault.potential


class TestThreeLayersHighDegree(PotentialConformance):
    cutoff = 4.0

    def potential(self) -> Potential:
        size = {
            "channels": 4,
            "l_max": 4,
            "l_hidden": 2,
            "num_layers": 3,
            "correlation": 4,
            "angular_factors": True,
        }
        config = PotentialConfig(cutoff=self.cutoff, **size)
        return perturbed(Potential(config))


class TestOneLayerScalars(PotentialConformance):
    cutoff = 4.0

    def potential(self) -> Potential:
        config = PotentialConfig(
            channels=8, l_max=1, l_hidden=0, num_layers=1, correlation=1, cutoff=self.cutoff
        )
        return perturbed(Potential(config))


def perturbed(potential: Potential) -> Potential:
    """Reference energies and own readouts that are not zero, as after training."""
    potential.e0[:] = -3.0 * potential.e0.new_ones(1).expand_as(potential.e0)
    potential.readout.element_weight.data.normal_(std=0.1)
    return potential


def test_the_suite_catches_a_wrong_sign() -> None:
    """The suite itself can fail: a potential whose forces are +dE/dr must not pass."""

    class Wrong(Potential):
        def forward(self, batch):
            out = super().forward(batch)
            return out.with_labels(forces=-out.forces)

    class Suite(PotentialConformance64):
        cutoff = 4.0

        def potential(self) -> Potential:
            return Wrong(PotentialConfig(channels=4, cutoff=4.0))

    from conformance import ethanol

    with pytest.raises(AssertionError):
        Suite().test_forces_are_central_differences(ethanol)
