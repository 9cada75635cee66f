"""The scripts that users copy, the tutorial and the commands, as they stand, on small data."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from evenfield import cli, model_zoo
from evenfield.finetune.closed_form.posterior import load_posterior


ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "finetune" / "scripts"


@pytest.fixture(scope="module")
def files(emt_file, tmp_path_factory) -> Path:
    """mine.extxyz: platinum crystals and alloys, new to the model; reference.extxyz: REF_."""
    folder = tmp_path_factory.mktemp("mine")
    frames = [
        a
        for a in ase.io.read(emt_file, ":")
        if "Pt" in a.symbols and a.info["level"] == "EMT" and len(a) < 5
    ]
    for atoms in frames:
        atoms.info["volume"] = atoms.get_volume() / len(atoms)
    ase.io.write(folder / "mine.extxyz", frames)
    for atoms in frames:
        atoms.info |= {"REF_energy": atoms.get_potential_energy()}
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    ase.io.write(folder / "reference.extxyz", frames)
    others = [a for a in ase.io.read(emt_file, ":") if a.info["level"] == "EMT" and a.pbc.all()]
    for atoms in others:
        atoms.info["volume"] = atoms.get_volume() / len(atoms)
    ase.io.write(folder / "all.extxyz", others)
    return folder


def script(name: str, *words: object, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def command(line: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None), line


def test_scripts_are_short() -> None:
    lengths = {path.stem: len(path.read_text().splitlines()) for path in SCRIPTS.glob("*.py")}
    assert len(lengths) == 5
    assert max(lengths.values()) <= 50, lengths


def test_refit_on_own_data(model_folder, files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "tuned"
    words = (str(model_folder), files / "mine.extxyz", out)
    text = script("refit_own_data", *words, monkeypatch=monkeypatch, capsys=capsys)
    assert "step 0: E0 refitted" in text and f"saved in {out}" in text
    assert model_zoo.load(out).potential.config.levels_of_theory == ["EMT", "mine"]
    assert load_posterior(out).level_of_theory == "mine"


def test_new_element(model_folder, files, tmp_path, monkeypatch, capsys):
    words = (str(model_folder), files / "mine.extxyz", tmp_path / "tuned", 6)
    text = script("new_element", *words, monkeypatch=monkeypatch, capsys=capsys)
    assert "learned: ['Pt']" in text and "new-element: force MAE" in text
    assert "Pt" in model_zoo.load(tmp_path / "tuned").record.elements["mine"]


def test_other_functional_by_energies_in_ref_columns(
    model_folder, files, tmp_path, monkeypatch, capsys
):
    words = (str(model_folder), files / "reference.extxyz", tmp_path / "tuned", "PBE0")
    text = script("other_functional", *words, monkeypatch=monkeypatch, capsys=capsys)
    assert "with ['EMT', 'PBE0']" in text and "E0 shifts" in text


def test_energy_only(model_folder, files, tmp_path, monkeypatch, capsys):
    words = (str(model_folder), files / "mine.extxyz", tmp_path / "tuned", 6)
    text = script("energy_only", *words, monkeypatch=monkeypatch, capsys=capsys)
    errors = [float(x) for x in re.findall(r"energy MAE ([\d.]+) meV", text)]
    assert errors[-1] <= errors[0]
    training = model_zoo.load(tmp_path / "tuned").record.training["finetune"]
    assert training["step0"][0]["force_mae"] is None


# some of the structures that are looked at have pairs of elements that were only held out
@pytest.mark.filterwarnings("ignore::evenfield.model_zoo.engines.domain_watch.DomainWarning")
@pytest.mark.parametrize("name", ["all", "mine"])
def test_uncertainty(name, model_folder, files, tmp_path, monkeypatch, capsys):
    words = (str(model_folder), files / f"{name}.extxyz", tmp_path / "tuned")
    text = script("uncertainty", *words, monkeypatch=monkeypatch, capsys=capsys)
    spreads = [float(x) for x in re.findall(r"spread ([\d.]+) eV/A", text)]
    assert spreads and np.isfinite(spreads).all()
    assert (max(spreads) > 0) != (
        "their spread is not an uncertainty" in text
    )  # a spread of nothing is not passed over


# --- commands


SHORTER = {"gradient.max_steps=300": "gradient.max_steps=4 gradient.evaluate_every=2"}
SHORTER |= {
    "sizes=[4,16] seeds=[0,1,2]": (
        "sizes=[4] seeds=[0] scratch_steps=2 finetune.gradient.max_steps=2"
    )
}


def test_tutorial(model_folder, files, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "finetuning.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/model").symlink_to(model_folder.parent)
    Path("mine.extxyz").write_bytes((files / "mine.extxyz").read_bytes())
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    commands = [line for line in lines if line.startswith("evenfield")]
    assert len(commands) == 5
    for line in commands:
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        command(line, monkeypatch)
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "step 0: E0 refitted",
        "what was forgotten",
        "stretched crystals",
        "estimated noise",
    ):
        assert words in printed
    assert Path("runs/fewshot.png").stat().st_size > 10_000
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})
    rows = json.loads(Path("runs/tuned/forgetting.json").read_text())
    assert {row["kind"] for row in rows} == {"pairs", "stretched crystals"}


def test_a_head_beats_the_mean_and_stays_only_where_its_features_do(
    model_folder, files, sets, tmp_path, monkeypatch, capsys
):
    with_head = tmp_path / "with"
    # an element that the model has not learned is refused
    known = [a for a in ase.io.read(files / "all.extxyz", ":") if "Pt" not in a.symbols]
    ase.io.write(tmp_path / "known.extxyz", known)
    words = "head=scalar key=volume unit=A^3 level_of_theory=EMT split=structure"
    command(
        f"evenfield finetune head {model_folder} {tmp_path / 'known.extxyz'} {with_head} {words}",
        monkeypatch,
    )
    about = model_zoo.load(with_head).heads["volume"].description
    assert about.errors["mae"] < 0.6 * about.guess["mae"]
    capsys.readouterr()

    words = f"evenfield finetune {with_head} {sets['platinum']} {tmp_path}"
    full = "strategy=full gradient.max_steps=2"
    command(f"{words}/refitted num_structures=4 strategy=refit", monkeypatch)
    assert "heads" not in capsys.readouterr().out
    copper = bulk("Cu", cubic=True)
    kept = model_zoo.load(tmp_path / "refitted").predict(copper, "volume")
    assert kept == model_zoo.load(with_head).predict(copper, "volume")

    command(f"{words}/trained num_structures=4 {full}", monkeypatch)
    text = " ".join(capsys.readouterr().out.split())
    assert "without the heads volume: full has changed the features that they read" in text
    assert "heads.safetensors" not in model_zoo.load(tmp_path / "trained").attachments


@pytest.mark.slow
def test_array_tasks_of_the_slurm_recipe_then_its_last_job(model_folder, sets, tmp_path):
    base = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "RANK", "WORLD_SIZE"))
    }
    base |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    out = tmp_path / "fewshot.json"
    words = [
        "bash",
        str(ROOT / "slurm" / "finetune_curve.sbatch"),
        str(model_folder),
        str(sets["platinum"]),
        str(out),
    ]
    words += ["sizes=[2,4]", "seeds=[0]", "scratch_steps=0"]
    array = [
        {"SLURM_ARRAY_TASK_ID": k, "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "2"}
        for k in "45"
    ]
    for variables in (*array, {}):
        done = subprocess.run(
            words, env=base | variables, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert out.exists() == (not variables)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 6 and out.with_suffix(".png").exists()


def test_wrong_share_of_an_array_is_named(model_folder, sets, tmp_path, monkeypatch, capsys):
    words = [
        "evenfield",
        "finetune",
        "curve",
        str(model_folder),
        str(sets["platinum"]),
        str(tmp_path / "x.json"),
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--task", "3/2"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--task 3/2: write K/N with K from 1 to N" in capsys.readouterr().err


def test_benchmark_of_the_refit_runs_and_its_solution_is_exact() -> None:
    measured = runpy.run_path(str(ROOT / "benchmarks" / "refit_speed.py"))["main"](
        ["--structures", "2", "--threads", "1"]
    )
    assert measured["labels"] == 2 * (1 + 3 * 64) and measured["seconds"] > 0
    assert measured["relative gradient at the solution"] < 1e-8
