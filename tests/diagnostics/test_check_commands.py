"""`evenfield check` as a user types it, and how checks are found."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.core.seals import sealed, unsealed
from evenfield.diagnostics import checks
from evenfield.diagnostics.check import CheckResult, Figure, OtherCalculator
from evenfield.diagnostics.sanity.answers import ask
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig, save_model
from evenfield.model_zoo.package.folder import describe, read_model_folder
from evenfield.model_zoo.package.record import Description
from evenfield.model_zoo.package.sanity_record import sanity_record


EMT_HEAD = ["--level-of-theory", "EMT"]
TOY_CHECK = '''
from typing import Annotated

import typer
from ase import Atoms

from evenfield.diagnostics.check import CheckedModel, CheckResult, Figure, structure_argument


def check(
    model: CheckedModel,
    structure: Annotated[Atoms, structure_argument("what to compress")],
    scale: Annotated[float, typer.Option(help="of the cell")] = 1.0,
) -> CheckResult:
    """Is a crystal as low in energy when it is scaled?"""
    structure.calc = model.calculator("float64")
    before = structure.get_potential_energy()
    structure.set_cell(structure.cell * scale, scale_atoms=True)
    rise = structure.get_potential_energy() - before
    return CheckResult([Figure("rise", rise, "eV", limit=1e-6)], [f"a rise of {rise:.3f} eV"])
'''


@pytest.fixture
def crystal(tmp_path: Path) -> str:
    path = tmp_path / "copper.cif"
    bulk("Cu", cubic=True).write(path)
    return str(path)


def run(*words: str) -> tuple[int, str]:
    """Exit code and output; the text of an error for users is part of the output."""
    result = CliRunner().invoke(app, ["check", *words])
    # any other exception would reach a user as a traceback
    assert isinstance(result.exception, (type(None), SystemExit, EvenfieldError)), result.exception
    return result.exit_code, result.stdout + str(result.exception or "")


def test_symmetry() -> None:
    code, text = run("symmetry", "evenfield-s", *EMT_HEAD)
    assert code == 0, text
    assert text.count(" ok ") == 26 and "FAILED" not in text


def test_symmetry_of_a_broken_model_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # below the rounding of float32, so that a good model counts as broken
    monkeypatch.setattr("evenfield.diagnostics.checks.symmetry.SINGLE", 1e-12)
    verdict = tmp_path / "verdict.json"
    code, text = run("symmetry", "evenfield-s", *EMT_HEAD, "--json", str(verdict))
    assert code == 1 and "float32 FAILED" in text
    content = json.loads(verdict.read_text())
    assert content["passed"] is False
    assert {"name", "value", "unit", "limit", "at_least"} == set(content["figures"][0])


def test_a_verdict_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    verdict = tmp_path / "verdict.json"
    verdict.write_text("mine")
    words = ["phases", "evenfield-s", "Cu", *EMT_HEAD, "--json", str(verdict)]
    for option in ([], ["--overwrite"]):
        code, text = run(*words, *option)
        assert code == 1
        assert "holds a file of 4 bytes, not figures of `evenfield check phases`" in text
        assert verdict.read_text() == "mine"

    # of the same check, which may have looked at another model
    verdict.write_text('{"check": "phases", "model": "another"}')
    before = verdict.read_bytes()
    code, text = run(*words)
    assert code == 1 and "replace it with --overwrite" in text
    assert verdict.read_bytes() == before
    code, text = run(*words, "--overwrite")
    assert code == 0, text
    assert json.loads(verdict.read_text())["model"] == "evenfield-s"


def test_phases() -> None:
    code, text = run("phases", "evenfield-s", "Cu", *EMT_HEAD)
    assert code == 0, text

    names = []
    above = []
    for line in text.splitlines():
        name, energy, *_ = line.split()
        names.append(name)
        above.append(float(energy))
    assert sorted(names) == ["bcc", "beta-Sn", "diamond", "fcc", "hcp", "sc"]
    assert names[-1] == "diamond"

    # meV/atom; the order of fcc, hcp and bcc is not certain
    assert above[0] == 0
    assert 0 < above[3] < above[5] < 2000


def test_reach(crystal: str) -> None:
    """A small cell is repeated, so that what is felt is one atom and not its images."""
    code, text = run("reach", "evenfield-s", crystal, *EMT_HEAD)
    assert code == 0 and "cannot see beyond 10 A" in text

    # percent of the squared response, in the first cutoff and in the second
    near, far, *_ = (float(share) for share in re.findall(r"([0-9.]+) %", text))
    assert near > 90
    assert 0 < far < 10

    largest = re.search(r"none beyond ([0-9.]+) A", text)[1]
    assert 5 < float(largest) < 10


def test_scaling(crystal: str) -> None:
    code, text = run("scaling", "evenfield-s", crystal, *EMT_HEAD)
    assert code == 0 and "a call +" in text and "64 atoms" in text

    emt = ["--oracle", "ase.calculators.emt:EMT", "--doublings", "2"]
    code, text = run("scaling", "evenfield-s", crystal, *EMT_HEAD, *emt)
    assert code == 0 and "cheaper than EMT:" in text
    error, size = re.search(r"against EMT: ([0-9.]+) eV/A, of forces of ([0-9.]+)", text).groups()
    assert 0 < float(error) < float(size)


def test_scaling_against_tight_binding(tmp_path: Path) -> None:
    """Methane, one molecule in a cell, has an answer. Tight binding fails on a salt."""
    pytest.importorskip("tblite", reason="comes with the demo extra")
    methane = molecule("CH4", cell=[5.0, 5.0, 5.0], pbc=True)
    methane.center()
    methane_file = tmp_path / "methane.cif"
    methane.write(methane_file)
    salt_file = tmp_path / "salt.cif"
    bulk("LiF", "rocksalt", a=4.03).write(salt_file)

    options = ["--doublings", "2", "--xtb", "--level-of-theory", "GFN1-xTB"]
    code, text = run("scaling", "evenfield-s", str(methane_file), *options)
    assert code == 0, text
    assert "GFN1-xTB:     20 atoms" in text
    assert "cheaper than GFN1-xTB:" in text

    code, text = run("scaling", "evenfield-s", str(salt_file), *options)
    assert code == 1 and "closed-shell molecules" in text


def test_missing_tight_binding_names_the_extra(
    crystal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    code, text = run("scaling", "evenfield-s", crystal, *EMT_HEAD, "--xtb")
    assert code == 1 and re.search(r"pip install '?evenfield\[demo\]", text)


EMT_CALCULATOR = ["--calculator", "ase.calculators.emt:EMT"]


def test_a_check_of_any_calculator_of_ase(tmp_path: Path) -> None:
    code, text = run("repulsion", *EMT_CALCULATOR, "elements=[Cu,Ag]")
    assert code == 0, text
    assert "3 pairs of 2 elements" in text

    # EMT has parameters for H C N O too, and no others
    found = OtherCalculator("ase.calculators.emt:EMT").symbols
    assert {"Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al"} <= set(found)
    assert not {"Fe", "Na", "Cl", "Si"} & set(found)


def test_sanity_writes_a_page_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "emt"
    chosen = ["elements=[Cu,Ni]", "suite=quick", "checks=[repulsion,bound,water]"]
    words = ["sanity", *EMT_CALCULATOR, *chosen, "--out", str(out)]
    code, text = run(*words)
    assert code == 0, text
    assert "repulsion: passed" in text and "water: not judged" in text

    content = json.loads((out / "sanity.json").read_text())
    assert content["passed"] is True
    assert list(content["checks"]) == ["repulsion", "bound", "water"]
    assert content["checks"]["bound"]["skipped"].count("H2") == 1
    assert "pairs with a hole" in (out / "sanity.html").read_text()

    # the stored result is taken: nothing else can give 99 pairs
    (stored,) = out.glob(".sanity/*/repulsion.json")
    content = unsealed(stored.read_text())
    assert content is not None
    content["figures"][0]["value"] = 99
    stored.write_text(json.dumps(sealed(content)))
    run(*words)
    assert (
        json.loads((out / "sanity.json").read_text())["checks"]["repulsion"]["figures"][0]["value"]
        == 99
    )


def test_sanity_attaches_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing and the card then have it; a change of the record does not take it away."""
    monkeypatch.setattr("evenfield.diagnostics.checks.sanity.BATTERY", ("repulsion", "water"))
    folder = save_without_checks(tmp_path / "model")
    model = read_model_folder(folder)
    assert sanity_record(model.potential, model.attachments) is None

    code, _ = run("sanity", str(folder), "suite=quick", "--attach")
    model = read_model_folder(folder)
    record = sanity_record(model.potential, model.attachments)
    assert record is not None
    assert list(record.levels) == ["PBE"]
    checks = record.levels["PBE"].checks
    assert checks["repulsion"].passed is (code == 0)
    assert checks["water"].passed is None and checks["water"].skipped == 1
    assert "| PBE | quick | water | not judged |" in (folder / "README.md").read_text()

    describe(folder, Description(description="described"))
    model = read_model_folder(folder)
    assert sanity_record(model.potential, model.attachments) == record


def test_a_model_that_may_not_be_changed_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_without_checks(tmp_path / "model")
    monkeypatch.setattr("evenfield.core.destination.os.access", lambda *_: False)
    code, text = run("sanity", str(folder), "suite=quick", "--attach")
    assert code == 1
    assert "you may not write into" in text and "repulsion" not in text
    with pytest.raises(EvenfieldError, match="you may not write into"):
        describe(folder, Description(description="described"))


def save_without_checks(folder: Path) -> Path:
    potential = Potential(PotentialConfig(channels=4, cutoff=4.0, levels_of_theory=["PBE"]))
    record = ModelRecord(name="copper", elements={"PBE": ["Cu"]})
    return save_model(folder, potential, record)


def test_sanity_fails_with_an_exit_code(tmp_path: Path) -> None:
    """EMT's aluminium and platinum have a hole at short distance."""
    words = ["elements=[Al,Pt]", "checks=[repulsion]", "--out", str(tmp_path / "emt")]
    code, text = run("sanity", *EMT_CALCULATOR, *words)
    assert code == 1 and "repulsion: FAILED" in text
    assert "data:image/png" in (tmp_path / "emt" / "sanity.html").read_text()


def test_sanity_does_not_write_into_a_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    code, text = run("sanity", *EMT_CALCULATOR, "checks=[water]", "--out", str(tmp_path))
    assert code == 1 and "thesis.tex" in text

    # the memory of another check makes files of these names no results
    (tmp_path / ".sanity").mkdir()
    for name in ("sanity.html", "sanity.json"):
        (tmp_path / name).write_text("mine")
        code, text = run("sanity", *EMT_CALCULATOR, "checks=[water]", "--out", str(tmp_path))
        assert code == 1 and f"{name}: already exists" in text
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sanity"], "exactly one of them is needed"),
        (["sanity", "evenfield-s", *EMT_CALCULATOR], "exactly one of them is needed"),
        (["sanity", "--calculator", "ase.calculators.emt"], "--calculator ase.calculators.emt"),
        (["sanity", "--calculator", "no_such_module:EMT"], "no_such_module"),
        (["sanity", *EMT_CALCULATOR, "checks=[beauty]"], "there is no 'beauty'"),
        (["sanity", *EMT_CALCULATOR, "--attach"], "is not a model folder"),
        (["sanity", "evenfield-s", "--attach", *EMT_HEAD], "is not a model folder"),
        (["sanity", *EMT_CALCULATOR, "elements=[Xx]"], "'Xx' is not the symbol"),
        (["water", "evenfield-s", "suit=quick", *EMT_HEAD], "suit"),
        (["phases", "evenfield-s", "Xx", *EMT_HEAD], "Xx: the model was not trained on it"),
        (["phases", "nowhere", "Cu"], "nowhere"),
        (
            ["phases", "evenfield-s", "Cu", "--level-of-theory", "PBE"],
            "level_of_theory='PBE': the model has",
        ),
        (["symmetry", "evenfield-s"], "several levels of theory and no default"),
        (["reach", "evenfield-s", "CIF", "--index", "4", *EMT_HEAD], "has 4 atoms"),
        (["scaling", "evenfield-s", "XYZ", *EMT_HEAD], "no cell of three vectors"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], message: str, crystal: str, tmp_path: Path
) -> None:
    water = tmp_path / "water.xyz"
    molecule("H2O").write(water)
    # the files exist only now, so the cases hold names in their place
    files = {"CIF": crystal, "XYZ": str(water)}
    code, text = run(*[files.get(word, word) for word in words])
    assert code == 1
    assert message in text


def test_a_new_check_is_one_file(
    crystal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters become options, its docstring the help, its limit the exit code."""
    (tmp_path / "compression.py").write_text(TOY_CHECK)
    # the folder of the test counts as a part of the package's folder
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(tmp_path)])

    code, text = run("--help")
    assert code == 0 and "compression" in text

    code, text = run("compression", "--help")
    assert code == 0
    assert "--scale" in text
    assert "what to compress" in text

    code, text = run("compression", "evenfield-s", crystal, *EMT_HEAD)
    assert (code, text) == (0, "a rise of 0.000 eV\n")

    code, text = run("compression", "evenfield-s", crystal, "--scale", "0.8", *EMT_HEAD)
    assert code == 1 and text.startswith("a rise of ")

    # other tests must not find the module of a folder that is gone
    del sys.modules["evenfield.diagnostics.checks.compression"]


@pytest.mark.parametrize(
    ("figures", "passed"),
    [
        ([], None),
        ([Figure("reach", 3.0, "A")], None),
        ([Figure("error", 0.1, "", limit=0.2), Figure("reach", 3.0, "A")], True),
        ([Figure("error", 0.3, "", limit=0.2)], False),
        ([Figure("error", float("nan"), "", limit=0.2)], False),
        ([Figure("binding", 0.2, "eV", limit=0.4, at_least=0.1)], True),
        ([Figure("binding", 0.05, "eV", limit=0.4, at_least=0.1)], False),
        ([Figure("binding", float("nan"), "eV", at_least=0.1)], False),
    ],
)
def test_verdict(figures: list[Figure], passed: bool | None) -> None:
    assert CheckResult(figures).passed is passed


def test_a_calculator_that_refuses_atoms_when_it_gets_them_does_not_know_the_element() -> None:
    checked = OtherCalculator("broken_calculators:OnlyCopper")
    assert checked.symbols == ["Cu"]
    answer = ask(checked.calculator(), bulk("Ag"))
    assert np.isnan(answer.energy) and np.isnan(answer.forces).all()
