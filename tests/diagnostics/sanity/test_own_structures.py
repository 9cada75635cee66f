"""`structures=`: checks of a user's own structures, and the files that are refused."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.io import write
from typer.testing import CliRunner

from evenfield.cli import app
from evenfield.core.errors import EvenfieldError
from evenfield.core.settings import SettingsError
from evenfield.diagnostics.check import check_names
from evenfield.diagnostics.checks import dynamics
from evenfield.diagnostics.sanity.config import READ_BY, SanityConfig
from evenfield.diagnostics.sanity.own_structures import MOST_ATOMS, systems_of_file
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig, save_model

from broken_calculators import Drift, StrongForces, failed, made, values


EMT_OF_ASE = ["--calculator", "ase.calculators.emt:EMT"]


def written(path: Path, *frames: Atoms) -> Path:
    write(path, list(frames), format="extxyz")
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Primitive copper, a slab, and a molecule."""
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    slab.info.clear()
    return written(tmp_path / "mine.extxyz", bulk("Cu"), slab, molecule("CH3CH2OH"))


def test_systems_of_a_file(mine: Path) -> None:
    copper, slab, ethanol = systems_of_file(mine)
    assert [each.name for each in (copper, slab, ethanol)] == [
        "mine 0, Cu",
        "mine 1, Cu",
        "mine 2, C2H6O",
    ]
    # fewer atoms would have no temperature to speak of
    assert len(copper.atoms()) == 27
    assert copper.atoms().get_volume() == pytest.approx(27 * bulk("Cu").get_volume())
    assert (copper.is_crystal, slab.is_crystal, ethanol.is_crystal) == (True, False, False)
    assert (copper.time_step, slab.time_step, ethanol.time_step) == (2.0, 2.0, 0.5)
    # each call gives atoms of its own
    copper.atoms().positions[0] += 1
    assert np.array_equal(copper.atoms().positions[0], [0, 0, 0])


@pytest.mark.parametrize(
    ("name", "calculator", "fault"),
    [
        ("timestep", Drift, "systems with a drift that no time step removes"),
        ("smoothness", StrongForces, "largest error of a force as the slope"),
        ("relaxations", None, None),
        ("dynamics", None, None),
    ],
)
def test_checks_look_at_the_structures_of_a_user(
    name: str,
    calculator: type[EMT] | None,
    fault: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dynamics, "PART", 20)
    path = written(tmp_path / "gold.extxyz", bulk("Au"), bulk("NaCl", "rocksalt", a=5.6))
    settings = {"structures": path, "picoseconds": 0.2}
    result = made(name, EMT, ["Cu", "Au"], **settings)
    assert result.passed, result.lines
    assert result.skipped == ["gold 1, ClNa"]
    if name != "smoothness":
        assert values(result)["systems"] == 1
    if calculator is not None:
        assert fault in failed(made(name, calculator, ["Cu", "Au"], **settings))


WITHOUT_VOLUME = Atoms("Cu2", [[0, 0, 0], [2, 0, 0]], cell=[5, 5, 0], pbc=[True, True, False])


@pytest.mark.parametrize(
    ("atoms", "problem"),
    [
        (Atoms("Cu", [[0, 0, 0]]), "is a single atom"),
        (Atoms("Cu2", [[0, 0, 0], [0, 0, 0]]), "has two atoms in one place"),
        (Atoms("Cu2", [[0, 0, 0], [np.nan, 0, 0]]), "are not finite"),
        (WITHOUT_VOLUME, "its cell has no volume"),
        (bulk("Cu") * (11, 11, 11), f"more than {MOST_ATOMS}"),
    ],
)
def test_a_structure_that_cannot_be_simulated_is_named(
    atoms: Atoms, problem: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "mine.extxyz", bulk("Cu"), atoms)
    with pytest.raises(EvenfieldError, match="record 1") as caught:
        systems_of_file(path)
    assert problem in str(caught.value) and str(path) in str(caught.value)


def test_too_many_structures(tmp_path: Path) -> None:
    path = written(tmp_path / "many.extxyz", *[bulk("Cu")] * 51)
    with pytest.raises(EvenfieldError, match="holds 51 structures"):
        systems_of_file(path)


def run(*words: object) -> tuple[int, str]:
    """Exit code, and output with the text of an error."""
    result = CliRunner().invoke(app, ["check", *map(str, words)])
    assert isinstance(result.exception, (type(None), SystemExit, EvenfieldError)), result.exception
    return result.exit_code, result.stdout + str(result.exception or "")


def test_a_battery_of_own_structures(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.extxyz", bulk("Cu"))
    out = tmp_path / "out"
    words = [*EMT_OF_ASE, f"structures={path}", "checks=[relaxations]", "--out", out]
    code, text = run("sanity", *words)
    assert code == 0, text
    before = json.loads((out / "sanity.json").read_text())
    assert before["checks"]["relaxations"]["figures"][0]["value"] == 1

    # what was kept belongs to the content of the file, not to its name
    written(path, bulk("Cu"), bulk("Au"))
    code, text = run("sanity", *words)
    assert code == 0, text
    after = json.loads((out / "sanity.json").read_text())
    assert after["checks"]["relaxations"]["figures"][0]["value"] == 2
    assert before["settings"]["structures_sha256"] != after["settings"]["structures_sha256"]


def test_results_of_other_structures_are_not_compared(tmp_path: Path) -> None:
    for name, symbol in (("before", "Cu"), ("after", "Au")):
        path = written(tmp_path / "mine.extxyz", bulk(symbol))
        words = [f"structures={path}", "checks=[relaxations]", "--out", tmp_path / name]
        code, text = run("sanity", *EMT_OF_ASE, *words)
        assert code == 0, text
    code, text = run("compare", tmp_path / "before", tmp_path / "after")
    assert code == 1 and "make both with the same structures_sha256" in text


def test_a_missing_file_is_named_before_any_check(tmp_path: Path) -> None:
    path = tmp_path / "absent.xyz"
    code, text = run("physics", *EMT_OF_ASE, f"structures={path}", "suite=quick")
    assert code == 1 and str(path) in text
    assert "timestep" not in text


def test_a_verdict_about_own_structures_is_not_attached(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.extxyz", bulk("Cu"))
    potential = Potential(PotentialConfig(channels=4, cutoff=4.0, levels_of_theory=["PBE"]))
    record = ModelRecord(name="copper", elements={"PBE": ["Cu"]})
    model = save_model(tmp_path / "model", potential, record)
    code, text = run("sanity", model, "--attach", f"structures={path}")
    assert code == 1 and "structures of yours" in text


# --- settings that nothing reads


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["lattice", "structures=mine.xyz"], "structures"),
        (["lattice", "checks=[dynamics]"], "checks"),
        (["sanity", "oracle=ase.calculators.emt:EMT"], "oracle"),
        (["sanity", "checks=[water]", "temperature=500"], "temperature"),
    ],
)
def test_a_setting_that_no_check_reads_is_refused(words: list[str], key: str) -> None:
    code, text = run(*words, *EMT_OF_ASE)
    assert code == 1
    assert f"{key}=" in text and "nothing here reads it" in text


def test_settings_are_refused_in_comparisons_too(tmp_path: Path) -> None:
    model = "ase.calculators.emt:EMT"
    code, text = run("compare", model, model, "checks=[lattice]", "picoseconds=1")
    assert code == 1 and "picoseconds=1" in text


def test_the_table_of_readers_is_true() -> None:
    """A check reads `oracle` and `structures` through one function each."""
    found: dict[str, list[str]] = {"oracle": [], "structures": []}
    for name in check_names():
        module = importlib.import_module(f"evenfield.diagnostics.checks.{name}")
        for key, function in (("oracle", "oracle_of"), ("structures", "chosen_systems")):
            if hasattr(module, function):
                found[key].append(name)
    for key, names in found.items():
        assert names == sorted(READ_BY[key]), key
    with pytest.raises(SettingsError, match="temperature"):
        SanityConfig(temperature=400).refuse_unread(["lattice"])


CALCULATOR = """
from ase.calculators.emt import EMT


class Calc(EMT):
    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["forces"] = {factor} * self.results["forces"]
"""


def test_results_of_another_version_of_a_calculator_are_not_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command said `passed` after the calculator had been broken."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(dynamics, "PART", 20)
    path = written(tmp_path / "mine.extxyz", bulk("Cu"))
    module = tmp_path / "calculator_of_a_test.py"
    words = ["--calculator", "calculator_of_a_test:Calc", "elements=[Cu]", f"structures={path}"]
    words += ["checks=[dynamics]", "picoseconds=0.2", "--out", str(tmp_path / "out")]

    module.write_text(CALCULATOR.format(factor=1))
    code, text = run("sanity", *words)
    assert code == 0, text
    module.write_text(CALCULATOR.format(factor=-3))
    monkeypatch.delitem(sys.modules, "calculator_of_a_test")
    code, text = run("sanity", *words)
    assert code == 1, text
    assert "dynamics: FAILED" in text
