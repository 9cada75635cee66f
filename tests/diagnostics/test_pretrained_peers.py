"""The comparison with pretrained peers, with EMT and Lennard-Jones in their place."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield.diagnostics.sanity.answers import Dimer, ask, dimer_curves
from evenfield.model_zoo.hub.load import load


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EMT_NAME = "ase.calculators.emt:EMT"
LJ_NAME = "ase.calculators.lj:LennardJones"
# What the labels have in addition to EMT, eV: a shift of each element, which the fit must find.
ZERO = {"Cu": -3.0, "Ag": -7.5}
# Crystals of ACWF's file; ASE's EMT has a minimum in each near these lattice parameters.
PHASES = {"FCC": ("fcc", 1.0), "BCC": ("bcc", 0.795), "SC": ("sc", 0.65), "Diamond": ("diamond", 1)}


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    path = BENCHMARKS / "pretrained_peers.py"
    spec = importlib.util.spec_from_file_location("pretrained_peers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def labelled(atoms: Atoms, **info: Any) -> Atoms:
    atoms.calc = EMT()
    energy = atoms.get_potential_energy() + sum(ZERO[symbol] for symbol in atoms.symbols)
    made = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    made.arrays["REF_forces"] = atoms.get_forces()
    made.info |= {"REF_energy": energy, "REF_stress": atoms.get_stress(), **info}
    return made


def crystals(seed: int) -> list[Atoms]:
    """Small alloys, the last of which has a stress that belongs to another structure."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(6):
        atoms = bulk("Cu", cubic=True, a=3.8)
        atoms.symbols[rng.permutation(4)[: rng.integers(0, 5)]] = "Ag"
        atoms.rattle(0.1, rng=rng)
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders data and corpus, as the benchmark reads them."""
    folder = tmp_path_factory.mktemp("peers")
    longtail = []
    for seed, split in enumerate(("train", "valid", "test", "test")):
        # the file calls the last six test, too; the corpus trains on them
        for atoms in crystals(seed):
            longtail.append(
                labelled(
                    atoms, split=split, dataset=f"set_{seed}", group=f"formula/{len(longtail)}"
                )
            )
    longtail[17].info |= {"stress_suspect": True, "REF_stress": np.full(6, 50.0)}

    acwf = []
    for phase, (structure, share) in PHASES.items():
        edge = {"Diamond": 5.7}.get(phase, 3.61 * share)
        for scale in np.linspace(0.94, 1.06, 7) ** (1 / 3):
            acwf.append(labelled(bulk("Cu", structure, a=edge * scale), group=f"acwf/Cu-X/{phase}"))

    splits = {"train": [], "valid": [], "test": []}
    for number, atoms in enumerate(longtail):
        split = "train" if number >= 18 else atoms.info["split"]
        splits[split].append((f"multi_element_longtail/multi_element_longtail-{number}", atoms))
    for number, atoms in enumerate(acwf):
        split = "test" if atoms.info["group"].endswith("FCC") else "train"
        splits[split].append((f"acwf_vasp/acwf_vasp-{number}", atoms))

    (folder / "data").mkdir()
    (folder / "corpus").mkdir()
    for name, frames in (("multi_element_longtail", longtail), ("acwf_vasp", acwf)):
        plain = folder / f"{name}.extxyz"
        ase.io.write(plain, frames, format="extxyz")
        packed = gzip.compress(plain.read_bytes())
        (folder / "data" / f"{name}.extxyz.gz").write_bytes(packed)
    for split, rows in splits.items():
        columns = {
            "structure_id": [name for name, _ in rows],
            "atomic_numbers": [atoms.numbers.tolist() for _, atoms in rows],
        }
        pq.write_table(pa.table(columns), folder / "corpus" / f"{split}-00000.parquet")
    return folder


def run(world: Path, *words: str) -> tuple[dict[str, Any], str]:
    """The rows of OUT and what was printed."""
    out = world / "out.json"
    command = [sys.executable, str(BENCHMARKS / "pretrained_peers.py"), str(out)]
    for name in ("data", "corpus", "work"):
        command += [f"--{name}", str(world / name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(out.read_text())["rows"], done.stdout


def test_errors_and_curves_of_two_calculators(world: Path) -> None:
    rows, printed = run(world, "--peer", EMT_NAME, "--peer", LJ_NAME, "--parts", "errors", "curves")
    right = rows[EMT_NAME]["errors"]["sets"]
    wrong = rows[LJ_NAME]["errors"]["sets"]
    # the set that the corpus trains on is no test set
    assert set(right) == {"set_2", "all"}
    assert right["all"]["structures"] == 6 and right["all"]["failed"] == 0
    # labels have eight decimals in the file
    assert right["all"]["force_mae_eV_A"] < 1e-6 < 1e-2 < wrong["all"]["force_mae_eV_A"]
    assert right["all"]["energy_mae_unshifted_meV_atom"] > 3000
    assert right["all"]["energy_mae_meV_atom"] < 1e-3 < wrong["all"]["energy_mae_meV_atom"]
    shifts = rows[EMT_NAME]["errors"]["shifts_eV"]
    assert shifts == pytest.approx(ZERO, abs=1e-5)
    # the label of another structure, 8,000 GPa off, is masked
    assert right["all"]["stress_structures"] == 5
    assert right["all"]["stress_mae_GPa"] < 1e-5 < wrong["all"]["stress_mae_GPa"]

    curves = rows[EMT_NAME]["curves"]
    assert [phase["phase"] for phase in curves["phases"] if phase["held_out"]] == ["Cu-X/FCC"]
    assert len(curves["phases"]) == 4 and curves["failed"] == 0
    # the others' minima lie at the edge of the seven volumes of their reference
    assert abs(curves["phases"][0]["volume_percent"]) < 0.01
    assert abs(curves["phases"][0]["modulus_percent"]) < 1
    assert curves["lowest_is_right"] == {"Cu": True}
    # Lennard-Jones of ASE's defaults has its minimum at 1 A: none within reach
    assert rows[LJ_NAME]["curves"]["phases"][0]["volume_percent"] is None
    assert "| curves, held_out, all: without_minimum | 0 | 1 |" in printed
    assert "| curves: right structure lowest, % | 100 | 0 |" in printed
    assert "| all: force MAE, eV/A |" in printed and EMT_NAME in printed


def test_a_second_run_makes_only_what_is_missing(world: Path) -> None:
    run(world, "--peer", EMT_NAME, "--parts", "errors")
    answers = next((world / "work").glob("*EMT.errors.jsonl"))
    answers.write_text("")
    _, printed = run(world, "--peer", EMT_NAME, "--peer", LJ_NAME, "--parts", "errors")
    assert answers.read_text() == ""
    assert f"| figure | {EMT_NAME} | {LJ_NAME} |" in printed
    with pytest.raises(AssertionError, match="name another file"):
        run(world, "--peer", EMT_NAME, "--parts", "errors", "--thin", "set_2=3")


def test_speed_is_measured_in_turns(harness: ModuleType) -> None:
    (side,) = harness.sides([], [LJ_NAME])
    twin = replace(side, name="the same again")
    found = harness.speeds([side, twin], rounds=2)
    assert found[LJ_NAME]["ratio"] == 1
    assert found["the same again"]["compared_with"] == LJ_NAME
    assert len(found["the same again"]["rounds"]) == 2
    assert found["the same again"]["ms_per_atom"] > 0


def test_shifts_are_not_those_of_the_outliers(harness: ModuleType) -> None:
    """Least squares would answer 10 structures of which one is off by 40 eV/atom with 4 eV."""
    frames = [Atoms("Cu2", info={"REF_energy": 2.0})] * 10
    answers = [{"energy": 0.0}] * 9 + [{"energy": 80.0}]
    assert harness.fit_shifts(frames, answers)["Cu"] == pytest.approx(1.0, abs=0.01)


def test_a_model_is_named_with_its_level_and_revision(harness: ModuleType) -> None:
    plain, ours, peer = harness.sides(["evenfield-s", "evenfield-s:EMT"], [f"{EMT_NAME}=/p"])
    revision = load("evenfield-s").reference.partition("@")[2]
    assert plain.words == ("--model", "evenfield-s")
    assert ours.words == ("--model", "evenfield-s", "--level", "EMT")
    assert ours.name == f"evenfield-s@{revision[:8]}:EMT"
    assert peer.python == "/p" and peer.words == ("--calculator", EMT_NAME)


def test_networks_in_single_precision_are_asked_for_many_dimers_at_once() -> None:
    """Their rounding is not taken for atoms that feel each other at any distance."""

    class Single(EMT):
        calls = 0

        def calculate(self, *arguments: object, **options: object) -> None:
            super().calculate(*arguments, **options)
            type(self).calls += 1
            noise = np.random.default_rng(self.calls).normal(1, 1e-6)
            for name in ("energies", "forces"):
                self.results[name] = (self.results[name] * noise).astype(np.float32)
            self.results["energy"] *= noise

    dimers = [Dimer("Cu", "Au", distance) for distance in np.linspace(0.5, 3, 40)]
    energies, _ = dimer_curves(Single(), dimers)
    # the sample of five alone and together, and all of them
    assert Single.calls < len(dimers)
    assert energies[20] == pytest.approx(ask(EMT(), dimers[20].atoms()).energy, rel=1e-4)
