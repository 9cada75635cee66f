"""`evenfield zoo build`: where the model goes, and that its physical checks decide whether it does.

Data and training are those of tests/finetune/zoo_build; here they are finished already.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from evenfield import model_zoo
from evenfield.cli.zoo_build import zoo_build
from evenfield.diagnostics.checks import sanity
from evenfield.finetune.zoo_build import build as zoo
from evenfield.finetune.zoo_build.recipes import RECIPES, GeneratedRecipe, ZooRecipe
from evenfield.model_zoo import BadModelError, ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.package import sanity_record
from evenfield.model_zoo.package.manifest import MANIFEST
from evenfield.model_zoo.package.sanity_record import SanityWarning


NAME = "evenfield-m"
TOY = GeneratedRecipe(num_structures=60, description="A toy.", pretrain={"max_steps": 3})


def trained(folder: Path, *, repulsion: bool, levels: tuple[str, ...] = ("EMT",)) -> None:
    """What an interrupted build leaves: data, and a trained model that is not described yet."""
    (folder / "data").mkdir(parents=True)
    (folder / "embedded.extxyz.gz").touch()
    (folder / "data" / "dataset_info.json").touch()
    config = PotentialConfig(
        channels=4, cutoff=4.0, readout_size=8, repulsion=repulsion, levels_of_theory=list(levels)
    )
    record = ModelRecord(
        name=NAME, licence="Apache-2.0", elements={level: ["Cu", "Au"] for level in levels}
    )
    model_zoo.save_model(folder / NAME / "model", Potential(config), record)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the build of the toy works; one of the eight checks is made."""
    monkeypatch.setitem(RECIPES, NAME, TOY)
    monkeypatch.setattr(zoo, "attach_trust", lambda *_: None)
    # the data are an empty file here, which stands for a whole set
    monkeypatch.setattr(zoo, "damage_of", lambda _: None)
    monkeypatch.setattr(sanity, "BATTERY", ("repulsion",))
    monkeypatch.setattr(sanity_record, "_warned", set())
    return tmp_path / "work" / f"{NAME}-{TOY.digest}"


def build(tmp_path: Path, *, allow_failed: bool = False) -> Path:
    zoo_build(NAME, tmp_path / "zoo", tmp_path / "work", None, False, allow_failed)
    return tmp_path / "zoo" / NAME


def test_a_sound_model_is_built_with_its_record(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    # without a default, each level is checked
    trained(place, repulsion=True, levels=("EMT", "PBE"))
    folder = build(tmp_path)
    assert capsys.readouterr().out.endswith(f"model: {folder}\n")
    model = model_zoo.load(folder)
    record = json.loads(model.attachments["sanity.json"])
    assert set(record["levels"]) == {"EMT", "PBE"}
    assert record["levels"]["EMT"]["checks"]["repulsion"]["passed"] is True
    assert record["levels"]["EMT"]["suite"] == "quick"
    card = (folder / "README.md").read_text()
    assert "## Physical checks" in card and "| EMT | quick | repulsion | passed |" in card
    assert model.record.description == "A toy."
    assert "Physical checks" not in (place / NAME / "model" / "README.md").read_text()


def test_a_model_that_fails_is_kept_only_if_asked_for_and_then_warns(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trained(place, repulsion=False)
    with pytest.raises(BadModelError, match="failed at EMT: repulsion") as refusal:
        build(tmp_path)
    assert "--allow-failed" in refusal.value.remedy
    assert not (tmp_path / "zoo").exists()
    pages = list((place / "sanity").rglob("sanity.html"))
    assert len(pages) == 1

    # what was computed is read back
    def compute(*_: object) -> None:
        raise AssertionError("a finished check is made again")

    monkeypatch.setattr("evenfield.diagnostics.sanity.battery.check_function", compute)
    capsys.readouterr()
    folder = build(tmp_path, allow_failed=True)
    assert "failed at EMT: repulsion; loading the model warns of it" in capsys.readouterr().out
    with pytest.warns(SanityWarning, match="failed physical checks"):
        model_zoo.load(folder)
    assert "**failed**" in (folder / "README.md").read_text()


def test_a_model_that_stands_there_stays_when_the_new_one_fails(
    place: Path, tmp_path: Path
) -> None:
    trained(place, repulsion=False)
    old = tmp_path / "zoo" / NAME
    model_zoo.save_model(old, *model_zoo.load_model(place / NAME / "model"))
    before = (old / MANIFEST).read_bytes()
    with pytest.raises(BadModelError):
        zoo_build(NAME, tmp_path / "zoo", tmp_path / "work", None, True)
    assert (old / MANIFEST).read_bytes() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_zoo.load(old)


def test_the_command_puts_it_where_load_looks_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("EVENFIELD_CACHE", str(tmp_path))
    places = []

    def build(
        recipe: ZooRecipe,
        name: str,
        work: Path,
        into: Path,
        workers: int | None,
        check: object,
        *,
        sources: Path | None,
    ) -> Path | None:
        places.append(work)
        work.mkdir(parents=True, exist_ok=True)
        return into / name if len(places) > 1 else None  # interrupted, then done

    monkeypatch.setattr(zoo, "build_zoo_model", build)
    zoo_build(NAME, None, None, None)
    assert places[0].is_dir() and not capsys.readouterr().out
    zoo_build(NAME, None, None, None)
    assert places[1] == places[0] and not places[0].exists()
    assert capsys.readouterr().out == f"model: {tmp_path / 'zoo' / NAME}\n"
    zoo_build(NAME, tmp_path / "own", tmp_path / "work", None)
    # two models or two recipes never share what is left of a build
    digest = RECIPES[NAME].digest
    assert places[2] == tmp_path / "work" / f"{NAME}-{digest}" and places[2].is_dir()
    monkeypatch.setitem(RECIPES, NAME, TOY)
    zoo_build(NAME, None, None, None)
    assert places[3] != places[0]  # another recipe never goes on with what is left of this one
