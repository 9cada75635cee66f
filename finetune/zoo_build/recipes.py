"""Recipes of the named models: their data and the settings of their training.

There are two kinds: models trained on generated structures need nothing but this package, and
models trained on a corpus of published data need its files
(`evenfield zoo build NAME --sources`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field

from ...core.settings import Settings, load_settings
from ...data_pipelines.corpus.config import CorpusConfig
from ...data_pipelines.enrich.enrich import EnrichConfig


LICENCE = "Apache-2.0"
LEVELS = {
    "GFN1-xTB": (
        "GFN1-xTB of tblite: tight binding, clusters and molecules without periodicity, "
        "closed shell"
    ),
    "EMT": "effective medium theory of ASE: metals and alloys, periodic",
    "chgnet_0_3_0": (
        "labels of CHGNet 0.3.0, a potential that was trained on PBE and PBE+U of the Materials "
        "Project, and not of a DFT code"
    ),
}


class ZooRecipe(Settings):
    """What the recipes of both kinds share."""

    description: str
    licence: str = LICENCE
    pretrain: dict[str, Any] = Field(
        description="settings of PretrainConfig that differ from its defaults"
    )

    @property
    def digest(self) -> str:
        """Short digest of all settings."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


class GeneratedRecipe(ZooRecipe):
    """A model trained on structures that are generated and labelled during the build."""

    num_structures: int = Field(gt=0, description="generated and labelled here")
    seed: int = 0


class CorpusRecipe(ZooRecipe):
    """A model trained on published data, and on structures that another potential labels."""

    corpus: str = Field(description="recipe of `evenfield data corpus`")
    teachers: dict[str, EnrichConfig] = Field(
        default={}, description="folder of a data set -> how `evenfield data enrich` makes it"
    )

    def corpus_config(self) -> CorpusConfig:
        """The settings of the corpus."""
        return load_settings(CorpusConfig, Path(self.corpus))


# `pip install chgnet` includes the weights; a separate level, because these are not DFT labels
CHGNET: dict[str, Any] = {
    "oracle": "chgnet.model.dynamics:CHGNetCalculator",
    "oracle_licence": "BSD-3-Clause",
    "level_of_theory": "chgnet_0_3_0",
    "elements": "all",
    # CHGNet has parameters for these elements, but was not trained on them
    "excluded": ["Po", "At", "Rn", "Fr", "Ra"],
    "relatives": 4,
    "reuse_calculator": True,
}

GENTLE: dict[str, Any] = {"swap_all": 0.6, "strain": (0, 0.07), "largest_force": 20}

# The shares of the levels were set by hand and not optimised (docs/decisions/0023).
EVENFIELD_1: dict[str, Any] = {
    "default_level": "mp_pbe",
    "max_steps": 70000,
    "evaluate_every": 1000,
    "evaluate_structures": 400,
    "model": {"channels": 64},
    "stream": {"window_blocks": 24},
    "mixing": {
        "level_shares": {
            "mp_pbe": 0.34,
            "chgnet_0_3_0": 0.38,
            "acwf_vasp_pbe": 0.1,
            "mad_pbesol": 0.04,
            "mad_pbesol_total": 0.015,
            "oc20_rpbe": 0.03,
            "hea_pbesol": 0.012,
            "heusler_r2scan": 0.012,
            "water_revpbe0_d3": 0.009,
            "mol_acac": 0.012,
            "mol_ethanol": 0.012,
            "mol_3bpa": 0.012,
            "bo2_PBE": 0.004,
            "bo2_PBEsol": 0.004,
            "bo2_LDA": 0.004,
            "bo2_AM05": 0.004,
            "matpes_PBE": 0.005,
            "matpes_r2SCAN": 0.005,
        }
    },
    "level_sharing": {"levels": ["mp_pbe", "chgnet_0_3_0"]},
    "loss": {"final_energy": 50},
    "optimizer": {"learning_rate": 0.002},
    "schedule": {"warmup_steps": 200, "decay_share": 0.2},
    "compute": {"compiled": True},
    "average": {"decay": 0.999},
    "guards": {"spike": 5},
    "checkpoints": {"every": 500, "keep": 3},
}

RECIPES: dict[str, ZooRecipe] = {
    "evenfield-s": GeneratedRecipe(
        num_structures=2000,
        description=(
            "Small and fast, for trying things out: trained in minutes on generated structures at "
            "GFN1-xTB and EMT. It knows many elements, none of them well; results for a paper want "
            "a model trained on DFT data."
        ),
        pretrain={
            "max_steps": 900,
            "model": {"channels": 32},
            "stream": {"weights": {"beta": 0.5}},
        },
    ),
    "evenfield-m": GeneratedRecipe(
        num_structures=3000,
        description=(
            "The larger of the two models on generated structures at GFN1-xTB and EMT: more data "
            "and twice the channels of evenfield-s. Results for a paper want a model trained on "
            "DFT data."
        ),
        pretrain={
            "max_steps": 800,
            "model": {"channels": 64},
            "stream": {"weights": {"beta": 0.5}},
        },
    ),
    "evenfield-1": CorpusRecipe(
        corpus="evenfield-1",
        licence="CC-BY-4.0",
        description=(
            "Pretrained on published DFT data of 96 elements at 17 levels of theory, and on "
            "structures labelled by CHGNet 0.3.0 for breadth. The default level, mp_pbe, is that "
            "of the Materials Project."
        ),
        teachers={
            "teacher_phases": EnrichConfig(
                **CHGNET,
                **GENTLE,
                source_level="acwf_vasp_pbe",
                structures_per_element=60,
                rattle=(0, 0.25),
            ),
            "teacher_crystals": EnrichConfig(
                **CHGNET,
                **GENTLE,
                source_level="mp_pbe",
                most_atoms=32,
                rare=10,
                structures_per_element=130,
                rattle=(0.01, 0.3),
            ),
            # structures with forces of tens of eV/A, which are rare in the DFT sets
            "teacher_stressed": EnrichConfig(
                **CHGNET,
                source_level="mp_pbe",
                most_atoms=48,
                rare=10,
                structures_per_element=60,
                swap_all=0.3,
                strain=(0.02, 0.1),
                rattle=(0.05, 0.5),
                largest_force=80,
                seed=1,
            ),
            # small cells of all levels with nearly all elements swapped: compounds in no other set
            "teacher_broad": EnrichConfig(
                **CHGNET,
                most_atoms=16,
                structures_per_element=150,
                swap_all=0.8,
                strain=(0, 0.08),
                rattle=(0.02, 0.25),
                largest_force=15,
                seed=11,
            ),
        },
        pretrain=EVENFIELD_1,
    ),
}
