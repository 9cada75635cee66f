"""Recipes of the named models: demo data, one pretraining, probe set and posterior, a card.

    evenfield zoo build evenfield-m
    make zoo

`make zoo` trains the model that the package ships, evenfield-s, and writes it to
model_zoo/zoo/shipped. Every step is kept when it is done, so that an interrupted build can be
continued.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from ...core.destination import replace_folder
from ...core.settings import Settings
from ...data_pipelines.convert.convert import ConvertConfig, convert
from ...data_pipelines.demo.generate import GeneratorConfig, generate
from ...model_zoo.package.folder import describe, files_of_model, read_model_folder
from ...model_zoo.package.manifest import MANIFEST
from ...model_zoo.package.record import Description
from ...pretrain.config import PretrainConfig
from ...pretrain.errors import NoCheckpointError, ResumeError
from ...pretrain.run import pretrain
from ..safety.trust import attach_trust


LICENCE = "Apache-2.0"
LEVELS = {
    "GFN1-xTB": (
        "GFN1-xTB of tblite: tight binding, clusters and molecules without periodicity, "
        "closed shell"
    ),
    "EMT": "effective medium theory of ASE: metals and alloys, periodic",
}


class ZooRecipe(Settings):
    """What a named model is trained on, and how."""

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
    "evenfield-m": ZooRecipe(
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
}


def build_zoo_model(
    recipe: ZooRecipe,
    name: str,
    work: Path,
    into: Path,
    workers: int | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path | None:
    """Make a named model in `work`, and move it to `into`/`name`.

    check: is given the folder of the finished model before it is moved. It may attach something,
        and raises for a model that must not be kept.

    Returns None when a signal stopped the training. Raises MissingPackageError without tblite,
    which labels the data.
    """
    raw = work / "embedded.extxyz.gz"
    data = work / "data"
    run = work / name

    if not raw.exists():
        structures = GeneratorConfig(
            num_structures=recipe.num_structures, seed=recipe.seed, workers=workers
        )
        generate(structures, raw)
    if not (data / "dataset_info.json").exists():
        command = "`evenfield data generate`"
        about = f"{recipe.num_structures} structures of {command}, seed {recipe.seed}"
        convert(raw, data, ConvertConfig(licence=LICENCE, description=about))
    if not (run / "model" / MANIFEST).exists():
        settings = {"data": str(data), "out": str(run), "licence": LICENCE, **recipe.pretrain}
        config = PretrainConfig.model_validate(settings)
        try:
            if pretrain(config, resume="auto") is None:
                return None
        except (ResumeError, NoCheckpointError) as error:
            # their remedies name options of `evenfield pretrain`
            error.remedy = f"remove {run}, or build in another folder with --work"
            raise
    described = _described(recipe, name, run / "model", data)
    if check is not None:
        check(described)
    return _moved(described, into / name)


def _described(recipe: ZooRecipe, name: str, model: Path, data: Path) -> Path:
    """A copy of the model next to it, with card, probe set and posterior."""
    described = model.with_name("described")
    shutil.rmtree(described, ignore_errors=True)
    shutil.copytree(model, described)
    attach_trust(described, data)

    levels = read_model_folder(model).potential.config.levels_of_theory
    details = {level: LEVELS[level] for level in levels if level in LEVELS}
    description = Description(name=name, description=recipe.description, level_details=details)
    describe(described, description)
    return described


def _moved(described: Path, place: Path) -> Path:
    """Move a finished model to `place`; returns that."""
    # a model that was built before stays whole until the new one takes its place
    place.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(place, files_of_model(place)) as new:
        shutil.copytree(described, new, dirs_exist_ok=True)
    shutil.rmtree(described)
    return place
