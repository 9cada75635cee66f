"""Build a named model: its data, one pretraining, probe set and posterior, and a card.

    evenfield zoo build evenfield-m
    evenfield zoo build evenfield-1 --sources FOLDER
    make zoo

`make zoo` trains evenfield-s, which the package ships, and writes it to model_zoo/zoo/shipped. The
recipes are in `recipes.py`. The result of each step is kept, so that an interrupted build can be
continued.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ...core.destination import replace_folder
from ...core.errors import EvenfieldError
from ...core.files import copy_folder
from ...core.terminal import say
from ...data_pipelines.convert.convert import ConvertConfig, convert
from ...data_pipelines.corpus.corpus import build_corpus
from ...data_pipelines.demo.generate import GeneratorConfig, generate
from ...data_pipelines.enrich.enrich import enrich
from ...data_pipelines.store.shards import INFO
from ...data_pipelines.store.whole import damage_of
from ...model_zoo.package.folder import describe, files_of_model, read_model_folder
from ...model_zoo.package.manifest import MANIFEST
from ...model_zoo.package.record import Description
from ...pretrain.config import PretrainConfig
from ...pretrain.errors import NoCheckpointError, ResumeError
from ...pretrain.run import pretrain
from ..safety.trust import attach_trust
from .recipes import LEVELS, LICENCE, CorpusRecipe, GeneratedRecipe, ZooRecipe


def build_zoo_model(
    recipe: ZooRecipe,
    name: str,
    work: Path,
    into: Path,
    workers: int | None = None,
    check: Callable[[Path], None] | None = None,
    *,
    sources: Path | None = None,
) -> Path | None:
    """Build a named model in the folder `work`, and move it to `into`/`name`.

    workers: number of processes that make the data.
    check: is called with the folder of the finished model before it is moved. It may attach files
        to the model, and raises an error if the model must not be kept.
    sources: folder with the files of the corpus, for a recipe with a corpus.

    Returns the model folder, or None if a signal stopped the training. Raises MissingPackageError
    if tblite, which labels generated data, is not installed, and EvenfieldError for a recipe with a
    corpus but no `sources`.
    """
    run = work / name
    data = _data_sets(recipe, name, work, sources, workers)
    if not (run / "model" / MANIFEST).exists():
        settings = {
            "data": [str(folder) for folder in data],
            "out": str(run),
            "licence": recipe.licence,
            **recipe.pretrain,
        }
        config = PretrainConfig.model_validate(settings)
        try:
            if pretrain(config, resume="auto") is None:
                return None
        except (ResumeError, NoCheckpointError) as error:
            # the original remedies name options of `evenfield pretrain`
            error.remedy = f"remove {run}, or build in another folder with --work"
            raise
    described = _described(recipe, name, run / "model", data[0])
    if check is not None:
        check(described)
    return _moved(described, into / name)


def _data_sets(
    recipe: ZooRecipe, name: str, work: Path, sources: Path | None, workers: int | None
) -> list[Path]:
    """Make the data sets to train on, and return their folders."""
    if isinstance(recipe, GeneratedRecipe):
        return [_generated(recipe, work, workers)]
    assert isinstance(recipe, CorpusRecipe), "there are two kinds of recipes"
    if sources is None:
        raise EvenfieldError(
            f"is made of published data, the files of the corpus {recipe.corpus}",
            file=name,
            remedy="name the folder that has them with --sources",
        )
    return _corpus_and_teachers(recipe, work, sources, workers)


def _generated(recipe: GeneratedRecipe, work: Path, workers: int | None) -> Path:
    raw = work / "embedded.extxyz.gz"
    data = work / "data"
    if not raw.exists():
        structures = GeneratorConfig(
            num_structures=recipe.num_structures, seed=recipe.seed, workers=workers
        )
        generate(structures, raw)
    if not _is_whole(data):
        command = "`evenfield data generate`"
        about = f"{recipe.num_structures} structures of {command}, seed {recipe.seed}"
        config = ConvertConfig(licence=LICENCE, description=about)
        convert(raw, data, config, overwrite=(data / INFO).exists())
    return data


def _corpus_and_teachers(
    recipe: CorpusRecipe, work: Path, sources: Path, workers: int | None
) -> list[Path]:
    corpus = work / "corpus"
    # this continues an interrupted build, and does nothing for a complete corpus
    build_corpus(recipe.corpus_config(), corpus, folder=sources, workers=workers)
    folders = [corpus]
    for name, config in recipe.teachers.items():
        folder = work / name
        if not _is_whole(folder):
            enrich(corpus, folder, config, workers=workers, overwrite=(folder / INFO).exists())
        folders.append(folder)
    return folders


def _is_whole(folder: Path) -> bool:
    """Whether a data set is complete and undamaged; prints a warning if it is damaged."""
    damage = damage_of(folder)
    if damage is not None and (folder / INFO).exists():
        say(f"{damage.file}: {damage.message}; the data set is made again", err=True)
    return damage is None


def _described(recipe: ZooRecipe, name: str, model: Path, data: Path) -> Path:
    """Make a copy next to the model, with card, probe set and posterior; returns its folder."""
    described = model.with_name("described")
    shutil.rmtree(described, ignore_errors=True)
    copy_folder(model, described)
    attach_trust(described, data)

    levels = read_model_folder(model).potential.config.levels_of_theory
    details = {level: LEVELS[level] for level in levels if level in LEVELS}
    description = Description(name=name, description=recipe.description, level_details=details)
    describe(described, description)
    return described


def _moved(described: Path, place: Path) -> Path:
    """Move a finished model to `place`, and return `place`."""
    # an older model stays complete until the new one replaces it
    place.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(place, files_of_model(place)) as new:
        copy_folder(described, new)
    shutil.rmtree(described)
    return place
