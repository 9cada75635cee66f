"""The recipe that makes a named model, at a toy size: data, training, card, and a restart."""

from __future__ import annotations

import shutil
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield import model_zoo
from evenfield.core.errors import EvenfieldError
from evenfield.data_pipelines.corpus.config import CorpusConfig, CorpusSource
from evenfield.data_pipelines.demo import generate
from evenfield.data_pipelines.enrich.enrich import EnrichConfig
from evenfield.data_pipelines.store.shards import read_info
from evenfield.finetune.zoo_build import build as zoo
from evenfield.finetune.zoo_build.build import build_zoo_model
from evenfield.finetune.zoo_build.recipes import LEVELS, RECIPES, CorpusRecipe, GeneratedRecipe
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.errors import NoCheckpointError

from small_models import small_model


TOY = GeneratedRecipe(
    num_structures=60,
    description="A toy.",
    pretrain={
        "max_steps": 3,
        "evaluate_every": 2,
        "model": {"channels": 4, "l_max": 1, "readout_size": 8},
    },
)


def test_files_of_a_user_stay_next_to_a_model_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "attach_trust", lambda *_: None)
    new = small_model(tmp_path / "work" / "model")
    old = small_model(tmp_path / "zoo" / "toy")
    (old / "notes.txt").write_text("mine")
    described = zoo._described(TOY, "toy", new, tmp_path / "data")
    made = zoo._moved(described, old)
    assert (made / "notes.txt").read_text() == "mine"
    assert model_zoo.load(made).record.description == "A toy."


def test_a_damaged_checkpoint_is_answered_with_options_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`zoo build` has no --resume."""
    monkeypatch.setattr(zoo, "generate", lambda *_: None)
    monkeypatch.setattr(zoo, "convert", lambda *_, **__: None)

    def refuse(config: PretrainConfig, resume: str) -> None:
        raise NoCheckpointError(Path(config.out), ["step-00000005 (damaged)"])

    monkeypatch.setattr(zoo, "pretrain", refuse)
    with pytest.raises(NoCheckpointError) as told:
        build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "zoo", workers=1)
    run = tmp_path / "work" / "toy"
    assert told.value.remedy == f"remove {run}, or build in another folder with --work"


def test_a_model_of_published_data_asks_for_them(tmp_path: Path) -> None:
    recipe = RECIPES["evenfield-1"]
    with pytest.raises(EvenfieldError, match="made of published data") as told:
        build_zoo_model(recipe, "evenfield-1", tmp_path / "work", tmp_path / "zoo")
    assert "--sources" in told.value.remedy
    assert not (tmp_path / "work").exists()


def test_a_model_of_a_corpus_and_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of evenfield-1 at a toy size, with EMT in place of both DFT and CHGNet."""
    frames = []
    for index, symbol in enumerate(["Cu", "Au", "Ag", "Ni"] * 10):
        atoms = bulk(symbol, cubic=True)
        atoms.rattle(0.05, seed=index)
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    (tmp_path / "files").mkdir()
    ase.io.write(tmp_path / "files" / "metals.extxyz", frames)
    source = CorpusSource(files="metals.extxyz", licence="MIT", level_of_theory="mp_pbe")
    corpus = CorpusConfig(name="toy", sources={"metals": source})
    monkeypatch.setattr(CorpusRecipe, "corpus_config", lambda _: corpus)
    teacher = EnrichConfig(
        oracle="EMT", level_of_theory="teacher", elements="all", rare=1, structures_per_element=4
    )
    recipe = CorpusRecipe(
        description="A toy.",
        licence="CC-BY-4.0",
        corpus="toy",
        teachers={"cheap": teacher},
        pretrain=TOY.pretrain
        | {"default_level": "mp_pbe", "level_sharing": {"levels": ["mp_pbe", "teacher"]}},
    )
    where = {"workers": 1, "sources": tmp_path / "files"}
    folder = build_zoo_model(recipe, "toy", tmp_path / "work", tmp_path / "zoo", **where)
    assert folder is not None
    model = model_zoo.load(folder)
    assert model.record.licence == "CC-BY-4.0"
    assert set(model.record.elements) == {"mp_pbe", "teacher"}
    assert model.record.default_level == "mp_pbe"
    assert [data.name for data in model.record.training_data] == ["toy", "toy enriched by EMT"]

    # what is done is kept, and what was damaged since is made again
    shard = tmp_path / "work" / "cheap" / "train-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(b"PAR?" + whole[4:])
    monkeypatch.setattr(zoo, "pretrain", None)
    assert build_zoo_model(recipe, "toy", tmp_path / "work", tmp_path / "second", **where)
    assert shard.read_bytes() == whole
    monkeypatch.setattr(zoo, "enrich", None)
    assert build_zoo_model(recipe, "toy", tmp_path / "work", tmp_path / "other", **where)


def test_the_recipe_of_evenfield_1_fits_its_corpus() -> None:
    recipe = RECIPES["evenfield-1"]
    assert isinstance(recipe, CorpusRecipe)
    config = PretrainConfig.model_validate({"data": "x", "out": "y", **recipe.pretrain})
    shares = config.mixing.level_shares
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1.0)
    levels = {teacher.new_level for teacher in recipe.teachers.values()}
    assert set(shares) == set(recipe.corpus_config().level_details) | levels
    assert set(config.level_sharing.levels) <= set(shares)
    assert levels <= LEVELS.keys()


def test_damaged_data_are_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "work" / "embedded.extxyz.gz"
    raw.parent.mkdir()
    shutil.copyfile(Path(generate.__file__).with_name("sample") / "demo_sample.extxyz.gz", raw)
    trained = []

    def stop(config: PretrainConfig, resume: str) -> None:
        trained.append(read_info(config.data[0]))

    monkeypatch.setattr(zoo, "pretrain", stop)

    def build() -> None:
        assert build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "zoo", workers=1) is None

    build()
    shard = tmp_path / "work" / "data" / "train-00000.parquet"
    whole = shard.read_bytes()
    build()
    assert capsys.readouterr().err == ""

    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    build()
    assert shard.read_bytes() == whole
    assert f"{shard}: was changed since it was written" in capsys.readouterr().err
    # half of a file that other files are known by
    (shard.parent / "dataset_info.json").write_text('{"schema_version": 3, "source": {}')
    build()
    assert trained == [trained[0]] * 4


@pytest.mark.slow
@pytest.mark.pictures
def test_a_model_is_made_described_and_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tblite", reason="comes with the demo extra")
    folder = build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "zoo", workers=1)
    assert folder == tmp_path / "zoo" / "toy"
    model = model_zoo.load(folder)
    assert model.record.name == "toy" and model.record.description == "A toy."
    assert set(model.record.level_details) == {"GFN1-xTB", "EMT"} == set(model.record.elements)
    assert model.evaluation.num_structures > 0 and "parity.png" in model.attachments
    assert {"probe.extxyz", "posterior.safetensors"} <= model.attachments.keys()
    assert model_zoo.publish(folder, "me/toy", tmp_path / "hub", allow_failed=True)
    # what is done is kept: the folder comes back byte for byte without data or training
    monkeypatch.setattr(zoo, "pretrain", None)
    monkeypatch.setattr(zoo, "generate", None)
    again = build_zoo_model(TOY, "toy", tmp_path / "work", tmp_path / "other", workers=1)
    assert (
        again is not None
        and (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    )
