"""Recipes of the named models: generated data, one pretraining, probe set and posterior, a card. One command each.

    evenfield zoo build evenfield-m
    make zoo                           what the package ships, evenfield-s, trained anew into model_zoo/zoo/shipped

Each step is kept when it is done, so that a build which was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from ...core.settings import Settings
from ...data_pipelines.convert.convert import ConvertConfig, convert
from ...data_pipelines.demo.generate import GeneratorConfig, generate
from ...model_zoo.package.folder import describe, read_model_folder
from ...model_zoo.package.manifest import MANIFEST
from ...model_zoo.package.record import Description
from ...pretrain.config import PretrainConfig
from ...pretrain.run import pretrain
from ..safety.trust import attach_trust


LICENCE = "Apache-2.0"
LEVELS = {
    "GFN1-xTB": "GFN1-xTB of tblite: tight binding, clusters and molecules without periodicity, closed shell",
    "EMT": "effective medium theory of ASE: metals and alloys, periodic",
}


class ZooRecipe(Settings):
    """What a named model is made of."""

    num_structures: int = Field(gt=0, description="generated and labelled here")
    seed: int = 0
    description: str
    pretrain: dict[str, Any] = Field(
        description="settings of PretrainConfig that differ from its defaults"
    )

    @property
    def digest(self) -> str:
        """Changes with every setting."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


RECIPES = {
    "evenfield-s": ZooRecipe(
        num_structures=2000,
        description=(
            "Small and fast, for trying things out: trained in minutes on generated structures at GFN1-xTB and EMT. "
            "It knows many elements, none of them well; results for a paper want a model trained on DFT data."
        ),
        pretrain={
            "max_steps": 900,
            "model": {"channels": 32},
            "stream": {"weights": {"beta": 0.5}},
        },
    ),
    "evenfield-m": ZooRecipe(
        num_structures=3000,
        description=(
            "The larger of the two models on generated structures at GFN1-xTB and EMT: more data and twice the "
            "channels of evenfield-s. Results for a paper want a model trained on DFT data."
        ),
        pretrain={
            "max_steps": 800,
            "model": {"channels": 64},
            "stream": {"weights": {"beta": 0.5}},
        },
    ),
}


def build_zoo_model(
    recipe: ZooRecipe, name: str, work: Path, into: Path, workers: int | None = None
) -> Path | None:
    """Make a named model in `work` and put it into `into`/`name`; None when a signal stopped the training.

    Raises ImportError without tblite, which labels the data (extra `demo`).
    """
    raw, data, run = work / "embedded.extxyz.gz", work / "data", work / name
    if not raw.exists():
        generate(
            GeneratorConfig(
                num_structures=recipe.num_structures, seed=recipe.seed, workers=workers
            ),
            raw,
        )
    if not (data / "dataset_info.json").exists():
        about = (
            f"{recipe.num_structures} structures of `evenfield data generate`, seed {recipe.seed}"
        )
        convert(raw, data, ConvertConfig(licence=LICENCE, description=about))
    if not (run / "model" / MANIFEST).exists():
        settings = {"data": str(data), "out": str(run), "licence": LICENCE, **recipe.pretrain}
        config = PretrainConfig.model_validate(settings)
        if pretrain(config, resume="auto") is None:
            return None
    return _finish_and_move(recipe, name, run / "model", data, into)


def _finish_and_move(recipe: ZooRecipe, name: str, model: Path, data: Path, into: Path) -> Path:
    levels = read_model_folder(model).potential.config.levels_of_theory
    described = model.with_name("described")
    shutil.rmtree(described, ignore_errors=True)
    shutil.copytree(model, described)
    details = {level: LEVELS[level] for level in levels if level in LEVELS}
    attach_trust(described, data)
    describe(
        described, Description(name=name, description=recipe.description, level_details=details)
    )
    into.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(into / name, ignore_errors=True)
    shutil.move(described, into / name)
    return into / name
