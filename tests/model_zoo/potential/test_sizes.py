"""The named sizes, and what an untrained model of each predicts: any change of form is noticed."""

from __future__ import annotations

import pytest
import torch

from evenfield.core.settings import SettingsError, load_settings
from evenfield.model_zoo import Potential, PotentialConfig
from evenfield.model_zoo.network.gaunt.config import GauntConfig
from evenfield.model_zoo.potential.config import ModelConfig
from evenfield.pretrain.config import PretrainConfig
from evenfield.testing.structures import batch_of, crystal, ethanol


# Energies of the rattled NaCl cell and of ethanol (eV), and the root mean square of all force
# components (eV/A), in float64 with seed 0.
GOLDEN = {
    "small": (-5.1575628522, -6.7340179946, 1.1926603319),
    "medium": (-0.0055972691, -4.0342042286, 1.4280840315),
    "large": (-3.3632852436, 1.7957388058, 1.3130225738),
}


@pytest.mark.parametrize("size", GauntConfig.SIZES)
def test_untrained_model_predicts_what_it_did(size):
    torch.manual_seed(0)
    model = Potential(PotentialConfig(size=size)).to(torch.float64).eval()
    out = model(batch_of([crystal(), ethanol()], model.config.cutoff, torch.float64))
    got = (*out.energy.tolist(), float(out.forces.detach().square().mean().sqrt()))
    assert got == pytest.approx(GOLDEN[size], rel=1e-5)


def test_size_is_a_start_that_other_keys_change():
    assert ModelConfig(size="medium", l_max=2) == ModelConfig(channels=64, l_max=2)
    assert ModelConfig(size="large", channels=96).network.channels == 96
    config = load_settings(PretrainConfig, None, ["data=x", "out=y", "model.size=medium"])
    assert config.model.network.channels == 64 and "size" not in config.model_dump()["model"]


def test_unknown_size_is_reported_with_the_known_ones():
    with pytest.raises(
        SettingsError,
        match="model: size: unknown size 'tiny': choose one of small, medium",
    ):
        load_settings(PretrainConfig, None, ["data=x", "out=y", "model.size=tiny"])


def test_layers_cannot_pass_on_more_than_the_products_reach():
    with pytest.raises(ValueError, match=r"l_hidden=1 is above l_max=0: lower it, or raise l_max"):
        ModelConfig(l_max=0)


def test_architecture_chooses_the_keys():
    config = ModelConfig(architecture="schnet", num_gaussians=8, size="large", repulsion=False)
    assert config.network.channels == 256
    assert ModelConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="schnet has no setting 'l_max': it has architecture"):
        ModelConfig(architecture="schnet", l_max=2)
    with pytest.raises(ValueError, match="unknown network 'mace': choose one of gaunt, schnet"):
        ModelConfig(architecture="mace")


def test_settings_without_a_tag_are_of_the_first_network():
    assert ModelConfig(channels=16).network == GauntConfig(channels=16)
    assert ModelConfig().model_dump()["architecture"] == "gaunt"
