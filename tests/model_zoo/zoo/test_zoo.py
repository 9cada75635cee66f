"""The named models: what ships is small, broad, whole and at hand without a network."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield import cli, model_zoo
from evenfield.finetune.zoo_build.recipes import RECIPES, CorpusRecipe
from evenfield.model_zoo import BadModelError, HubError
from evenfield.model_zoo.hub.publish import plan_publication
from evenfield.model_zoo.package.sanity_record import PHYSICS, SANITY, sanity_record
from evenfield.model_zoo.uncertainty.coverage import coverages_of
from evenfield.model_zoo.zoo import named_models as zoo


SHIPPED = "evenfield-s"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that no model built on this machine is found."""
    monkeypatch.setenv("EVENFIELD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "zoo"


def test_shipped_model_is_small_broad_and_fit_to_publish() -> None:
    folder = zoo.find(SHIPPED)
    model = model_zoo.load(SHIPPED)
    # every installation downloads it
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert num_bytes <= 3_000_000
    assert len(model.record.symbols) >= 40

    plan = plan_publication(folder, "me/copy", allow_failed=True)
    assert not plan.refused
    assert model.record.description
    assert model.record.level_details.keys() == model.record.elements.keys()
    assert {"coverage.png", "element_errors.png", "parity.png"} <= model.attachments.keys()
    assert {"probe.extxyz", "posterior.safetensors"} <= model.attachments.keys()


def test_the_pretrained_model_is_small_and_says_what_it_is() -> None:
    folder = zoo.find("evenfield-1")
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert num_bytes <= 6_000_000

    model = model_zoo.load("evenfield-1")
    record = model.record
    recipe = RECIPES["evenfield-1"]
    assert isinstance(recipe, CorpusRecipe)
    # every level of the corpus, and the teacher's
    assert set(record.elements) == set(recipe.corpus_config().level_details) | {"chgnet_0_3_0"}
    assert set(record.level_details) == set(record.elements) == set(model.domains)
    assert len(record.symbols) == 96
    assert record.default_level == "mp_pbe"
    assert record.licence == "CC-BY-4.0"

    # whoever uses the weights has to name the authors of the data
    card = (folder / "README.md").read_text()
    for source in recipe.corpus_config().sources.values():
        if source.citation:
            assert source.citation.split(",")[0] in card
    # physical checks were made of these very weights
    assert "sanity.json" in model.attachments


def test_every_record_of_the_pretrained_model_is_read() -> None:
    """A record states the digest of the model. A new setting of the network had changed it."""
    model = model_zoo.load("evenfield-1")
    for file in (SANITY, PHYSICS):
        assert sanity_record(model.potential, model.attachments, file) is not None
    assert model.uncertainties
    assert coverages_of(model.potential, model.attachments)


def test_the_pretrained_model_needs_no_level_and_has_sound_copper() -> None:
    calculator = model_zoo.load("evenfield-1").calculator()
    energies = {}
    for constant in (3.3, 3.64, 4.0):
        atoms = bulk("Cu", a=constant)
        atoms.calc = calculator
        energies[constant] = atoms.get_potential_energy()
    assert min(energies, key=lambda constant: energies[constant]) == 3.64


def test_shipped_model_knows_what_it_says() -> None:
    """Its errors on fresh EMT alloys are of the size that its card states for that level."""
    rng = np.random.default_rng(7)
    model = model_zoo.load(SHIPPED)
    calculator = model.calculator(level_of_theory="EMT")
    errors = []
    for _ in range(4):
        atoms = bulk("Cu", cubic=True) * (2, 2, 1)
        atoms.symbols[:] = rng.choice(["Cu", "Ag", "Au", "Pd"], len(atoms))
        atoms.set_cell(atoms.cell * 1.07, scale_atoms=True)
        atoms.rattle(0.1, rng=rng)

        expected = Atoms(atoms, calculator=EMT()).get_forces()
        atoms.calc = calculator
        error = np.abs(atoms.get_forces() - expected).mean()
        errors.append(error / np.abs(expected).mean())
    assert np.mean(errors) < 0.25
    assert model.evaluation.levels["EMT"].relative_force_mae < 0.25


def test_pinned_reference_loads_the_same_model(cache: Path) -> None:
    pinned = model_zoo.load(SHIPPED).reference
    assert model_zoo.load(pinned).reference == pinned
    with pytest.raises(HubError, match=r"evenfield-s@0123abcd: this machine has revision \w{16}"):
        model_zoo.load("evenfield-s@0123abcd")

    # one that was built here goes first; the shipped one stays within reach by its revision
    potential, record = model_zoo.load_model(zoo.find(SHIPPED))
    built = record.model_copy(update={"description": "built here"})
    model_zoo.save_model(cache / SHIPPED, potential, built)
    assert model_zoo.load(SHIPPED).record.description == "built here"
    assert model_zoo.load(pinned).record.description != "built here"


def test_model_that_is_not_here_says_how_to_make_it() -> None:
    with pytest.raises(HubError, match="build it with `evenfield zoo build evenfield-m`"):
        model_zoo.load("evenfield-m")


def test_every_name_has_a_recipe() -> None:
    assert set(RECIPES) == set(zoo.names())


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["evenfield", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_list_and_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert run(monkeypatch, "zoo", "list") == 0
    shown = capsys.readouterr().out
    revision = model_zoo.load(SHIPPED).reference.partition("@")[2]
    assert revision in shown
    assert "not here" in shown
    assert "evenfield zoo build evenfield-m" in shown

    assert run(monkeypatch, "zoo", "show", SHIPPED) == 0
    shown = capsys.readouterr().out
    assert "complete and verified: evenfield-s@" in shown

    assert run(monkeypatch, "zoo", "build", "evenfield-xl") == 1
    error = capsys.readouterr().err
    assert "name one of evenfield-1, evenfield-m, evenfield-s" in error


def test_damaged_shipped_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    shutil.copytree(zoo.SHIPPED / SHIPPED, shipped / SHIPPED)
    monkeypatch.setattr(zoo, "SHIPPED", shipped)

    path = shipped / SHIPPED / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float64"
    path.write_text(json.dumps(config))
    with pytest.raises(BadModelError, match=r"config\.json"):
        model_zoo.load(SHIPPED)
