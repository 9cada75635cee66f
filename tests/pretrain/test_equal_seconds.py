"""benchmarks/equal_seconds.py and what belongs to it, without any of the peers."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def search_path() -> Iterator[None]:
    """The files of the folder import each other by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def comparison(search_path: None) -> ModuleType:
    return importlib.import_module("equal_seconds")


@pytest.fixture(scope="module")
def protocol(search_path: None) -> ModuleType:
    return importlib.import_module("trainer_protocol")


@pytest.fixture(scope="module")
def picture(search_path: None) -> ModuleType:
    return importlib.import_module("error_against_cost")


def test_a_peer_takes_part_when_its_environment_is_given(comparison: ModuleType) -> None:
    options = comparison.parse_arguments(["out", "data", "--channels", "8", "128"])
    assert comparison.sizes_of(options) == [("evenfield", 8), ("evenfield", 128)]

    words = ["--pet", "p", "--sevennet", "s", "--sevennet-channels", "4", "--grace", "g"]
    options = comparison.parse_arguments(["out", "data", *words])
    found = comparison.sizes_of(options)
    assert found[:4] == [("evenfield", 32), ("SevenNet", 4), ("PET", 64), ("PET", 128)]
    # one environment serves its three models, each in two of the presets
    assert found[4:] == [
        (model, size)
        for model in ("GRACE-1L", "GRACE-2L", "GRACE-FS")
        for size in ("small", "medium")
    ]

    options = comparison.parse_arguments(["out", "data", *words, "--only", "PET", "MACE"])
    assert comparison.sizes_of(options) == [("PET", 64), ("PET", 128)]


def test_every_peer_has_a_trainer_and_an_option(comparison: ModuleType) -> None:
    options = comparison.parse_arguments(["out", "data"])
    for option, script in comparison.PEERS.values():
        assert getattr(options, option) is None
        assert getattr(options, f"{option}_channels")
        assert (BENCHMARKS / (script or "mace_trainer.py")).is_file()


@pytest.mark.parametrize("cells", [(1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 4)])
def test_one_structure_of_two_sizes(comparison: ModuleType, cells: tuple[int, int, int]) -> None:
    drawn = bulk("Cu", cubic=True).repeat(cells)
    drawn.rattle(0.05, seed=1)
    other = bulk("Cu", cubic=True).repeat((3, 3, 2))  # 72 atoms are farther from 64
    small, large = comparison.inference_structures([molecule("H2O"), other, drawn])
    assert (len(small), len(large)) == (64, 512)
    # a repeated crystal has the energy of its cell, as often as it is repeated
    energies = []
    for atoms in (drawn, small, large):
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy() / len(atoms))
    assert energies == pytest.approx([energies[0]] * 3)
    lengths = large.cell.lengths()
    assert lengths.max() <= 2 * lengths.min()


def test_the_larger_of_structures_that_come_as_near_is_timed(comparison: ModuleType) -> None:
    cell = bulk("Cu", cubic=True)
    # an atom of gold tells where the 64 come from: twice in 64 atoms, not sixteen times
    marked = cell.repeat((2, 2, 2))
    for atoms in (cell, marked):
        atoms.symbols[0] = "Au"
    for order in ([cell, marked], [marked, cell]):
        small, large = comparison.inference_structures(order)
        assert list(small.symbols).count("Au") == 2
        assert list(large.symbols).count("Au") == 16


def test_nothing_periodic_is_not_timed(comparison: ModuleType) -> None:
    assert comparison.inference_structures([molecule("H2O")]) == []


def test_colours_and_markers_of_models_differ(comparison: ModuleType) -> None:
    models = comparison.MODELS
    looks = [look for look, _ in zip(comparison.model_looks(), models, strict=False)]
    assert len(set(looks)) == len(models) == 11


def test_steps_that_compile_count_as_the_mean_of_the_rest(
    protocol: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(protocol.time, "process_time", lambda: now[0])
    clock = protocol.Clock(12.0, warm_up=2)

    def step(seconds: float, **what: bool) -> None:
        now[0] += seconds
        clock.step(**what)

    step(100.0)
    step(50.0)
    assert clock.seconds == 0.0
    assert clock.cosine() == 1.0
    step(2.0)
    assert clock.seconds == 3 * 2.0
    assert clock.cosine() == pytest.approx(0.5)

    now[0] += 1000.0  # a validation
    clock.go_on()
    step(1.0)
    step(70.0, compiled=True)
    assert clock.seconds == pytest.approx(5 * 1.5)
    assert not clock.is_over
    step(1.5)
    step(3.0)
    assert clock.seconds == pytest.approx(7 * 7.5 / 4)
    assert clock.is_over
    assert clock.share == 1.0
    assert clock.cosine() == pytest.approx(0.0)
    report = clock.report(batch_size=5)
    assert report == {"seconds": clock.seconds, "steps": 7, "structures": 35}


def test_batches_go_on_until_the_budget_is_spent(
    protocol: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(protocol.time, "process_time", lambda: now[0])
    clock = protocol.Clock(7.0, warm_up=0)
    seen = []
    for batch in clock.batches(["a", "b", "c"]):
        seen.append(batch)
        now[0] += 1.0
    assert "".join(seen) == "abcabca"


class Recorder(EMT):
    """EMT that keeps the positions it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: list[np.ndarray] = []

    def calculate(self, atoms: Atoms, *arguments: Any) -> None:  # type: ignore[override]
        self.positions.append(atoms.positions.copy())
        super().calculate(atoms, *arguments)


def test_all_are_tested_and_timed_by_the_same_code(protocol: ModuleType, tmp_path: Path) -> None:
    frames = []
    for seed, copies in enumerate((1, 2)):
        atoms = bulk("Cu", cubic=True).repeat((copies, 1, 1))
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        # every label is off by so much: 0.01 and 0.02 eV/atom, 0.3 eV/A
        atoms.info["REF_energy"] = atoms.get_potential_energy() + 0.01 * copies * len(atoms)
        atoms.arrays["REF_forces"] = atoms.get_forces() - 0.3
        atoms.calc = None
        frames.append(atoms)
    test = tmp_path / "test.xyz"
    ase.io.write(test, frames, format="extxyz")
    inference = tmp_path / "inference.xyz"
    ase.io.write(inference, frames[:1], format="extxyz")

    calculator = Recorder()
    row = protocol.measure(calculator, {"test": str(test), "inference": str(inference)})
    assert row["energy_mae_per_atom"] == pytest.approx(0.015)
    assert row["force_mae"] == pytest.approx(0.3, abs=1e-7)
    assert list(row["microseconds_per_atom"]) == ["4"]
    assert row["microseconds_per_atom"]["4"] > 0

    # the timed calls are of different positions, so that none can be remembered
    timed = calculator.positions[2:]
    assert len(timed) == protocol.CALLS + protocol.ROUNDS
    differences = [np.abs(one - other).max() for one, other in itertools.pairwise(timed)]
    assert min(differences) > 1e-3

    labelled = protocol.with_labels(str(test))
    assert [a.get_potential_energy() for a in labelled] == [a.info["REF_energy"] for a in frames]


def row(model: str, channels: int | str, cost: float, force: float, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "channels": channels,
        "budget": 300.0,
        "seed": 0,
        "energy_mae_per_atom": force / 10,
        "force_mae": force,
        "microseconds_per_atom": {"64": 2 * cost, "512": cost},
    } | more


def write(
    path: Path, rows: list[dict[str, Any]], data: str = "SiMo", ours: Sequence[str] = ()
) -> Path:
    settings = {"data": data, "ours": list(ours)}
    path.write_text(json.dumps({"settings": settings, "rows": rows}))
    return path


def test_the_picture_and_its_table(
    picture: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row("evenfield", 8, 100.0, 0.2),
        row("evenfield", 32, 200.0, 0.1),
        row("PET", 64, 400.0, 0.4),  # slower and worse than ours
        # two seeds, whose geometric mean is 0.3; cheaper than all others
        row("GRACE-FS", "small", 50.0, 0.1, seed=1),
        row("GRACE-FS", "small", 50.0, 0.9),
        row("evenfield", 32, 200.0, 0.9, budget=60.0),
    ]
    one = write(tmp_path / "one.json", rows[:3])
    other = write(tmp_path / "other.json", rows[3:])
    out = tmp_path / "picture.png"
    picture.main([str(out), str(one), str(other)])
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[2:] == [
        ["**evenfield**", "32", "200", "0.1", "10", "1"],
        ["**evenfield**", "8", "100", "0.2", "20", "1"],
        ["**GRACE-FS**", "small", "50", "0.3", "30", "2"],
        ["PET", "64", "400", "0.4", "40", "1"],
    ]
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"no row has a budget of 300 s .* at 63 atoms"):
        picture.main([str(out), str(one), "--atoms", "63"])


def test_a_run_of_ours_with_another_model_is_told_apart(
    picture: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write(tmp_path / "plain.json", [row("evenfield", 8, 100.0, 0.2)])
    words = ["compute.compiled=true", "model.l_max=2"]
    changed = write(tmp_path / "l2.json", [row("evenfield", 8, 90.0, 0.3)], ours=words)
    picture.main([str(tmp_path / "picture.png"), str(plain), str(changed)])
    lines = capsys.readouterr().out.splitlines()[2:]
    sizes = [line.strip("|").split("|")[1].strip() for line in lines]
    assert sizes == ["8", "8 l_max=2"]


def test_what_cannot_be_compared_is_refused(picture: ModuleType, tmp_path: Path) -> None:
    rows = [row("evenfield", 8, 100.0, 0.2), row("PET", 64, 1.0, 0.2, budget=60.0)]
    one = write(tmp_path / "one.json", rows)
    other = write(tmp_path / "other.json", rows, data="longtail")
    out = str(tmp_path / "picture.png")
    with pytest.raises(SystemExit, match=r"several data sets.*SiMo.*longtail"):
        picture.main([out, str(one), str(other)])
    with pytest.raises(SystemExit, match="no budget is common"):
        picture.main([out, str(one)])
    picture.main([out, str(one), "--budget", "60"])
