"""An enrichment that is stopped goes on where it was, and ends with the same data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.core.destination import DestinationError
from evenfield.core.errors import EvenfieldError
from evenfield.core.files import file_sha256
from evenfield.core.workers import WorkerEndedError
from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.enrich import kept
from evenfield.data_pipelines.enrich.enrich import EnrichConfig, EnrichError, enrich
from evenfield.data_pipelines.enrich.kept import KeptLabels, Made
from evenfield.data_pipelines.structure import Structure


MODULE = __name__
# of the only element that is rare
STRUCTURES = 6
# of this process, in which all labels are made
CALLS = {"made": 0, "until": 10**9}


class Stopping(Calculator):
    """Springs to the origin, and an interruption after some calls."""

    implemented_properties = ("energy", "forces")

    def __init__(self, stiffness: float = 0.1) -> None:
        super().__init__()
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if CALLS["made"] == CALLS["until"]:
            raise KeyboardInterrupt
        CALLS["made"] += 1
        self.results["forces"] = -self.stiffness * atoms.positions
        self.results["energy"] = 0.5 * self.stiffness * float((atoms.positions**2).sum())


@pytest.fixture(scope="module")
def metals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    structures = []
    for symbol, number in {"Cu": 8, "Ag": 8, "Pd": 2}.items():
        for index in range(number):
            atoms = bulk(symbol, cubic=True)
            atoms.rattle(0.05, seed=index)
            name = f"{symbol}-{index}"
            labels = {"energy": 0.0, "forces": np.zeros((4, 3))}
            structures.append(Structure.from_atoms(atoms, "EMT", name, name, "train", **labels))
    folder = tmp_path_factory.mktemp("metals") / "metals"
    write_data_set(structures, folder, {"file": "metals", "sha256": "0"}, ConvertConfig())
    return folder


@pytest.fixture(autouse=True)
def _small_files(monkeypatch) -> None:
    monkeypatch.setattr(kept, "MOST_OUTCOMES", 2)
    monkeypatch.setitem(CALLS, "made", 0)
    monkeypatch.setitem(CALLS, "until", 10**9)


def config_of(**settings: object) -> EnrichConfig:
    given = {
        "oracle": f"{MODULE}:Stopping",
        "rare": 4,
        "structures_per_element": STRUCTURES,
        "largest_force": 100.0,
    }
    return EnrichConfig(**(given | settings))


def shards(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in folder.rglob("*.parquet")}


def stopped(metals: Path, out: Path, monkeypatch, calls: int) -> None:
    """An enrichment that is interrupted after so many calls of the oracle."""
    monkeypatch.setitem(CALLS, "until", calls)
    with pytest.raises(KeyboardInterrupt):
        enrich(metals, out, config_of(), workers=1)
    monkeypatch.setitem(CALLS, "until", 10**9)


def test_a_repeat_makes_only_what_is_missing(metals, tmp_path, monkeypatch) -> None:
    enrich(metals, tmp_path / "whole", config_of(), workers=1)
    needed = CALLS["made"]
    CALLS["made"] = 0
    out = tmp_path / "out"
    stopped(metals, out, monkeypatch, 5)
    assert not out.exists()
    enrich(metals, out, config_of(), workers=1)
    assert CALLS["made"] == needed
    assert shards(out) == shards(tmp_path / "whole")
    assert not (tmp_path / "out.unfinished").exists()


def test_a_damaged_file_costs_its_own_labels(metals, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    stopped(metals, out, monkeypatch, 5)
    file = tmp_path / "out.unfinished" / "labels-0000.json"
    file.write_bytes(file.read_bytes().replace(b"0.1", b"0.2", 1))
    enrich(metals, tmp_path / "whole", config_of(), workers=1)
    CALLS["made"] = 0
    enrich(metals, out, config_of(), workers=1)
    assert shards(out) == shards(tmp_path / "whole")
    # five were made, and two of them again
    assert CALLS["made"] == STRUCTURES - 3


def test_a_stop_while_the_data_set_was_written(metals, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    stopped(metals, out, monkeypatch, 5)
    # killed after the first write below OUT
    (out / ".parts" / "0123").mkdir(parents=True)
    enrich(metals, out, config_of(), workers=1)
    assert shards(out)

    other = tmp_path / "other"
    (other / ".parts" / "0123").mkdir(parents=True)
    with pytest.raises(EvenfieldError, match="already exists and holds an unfinished data set"):
        enrich(metals, other, config_of(), workers=1)


def test_other_settings_are_refused(metals, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    stopped(metals, out, monkeypatch, 5)
    other = config_of(oracle_settings={"stiffness": 0.2})
    with pytest.raises(EvenfieldError, match="labels of an enrichment with other data, other"):
        enrich(metals, out, other, workers=1)
    enrich(metals, out, other, workers=1, overwrite=True)
    enrich(metals, tmp_path / "whole", other, workers=1)
    assert shards(out) == shards(tmp_path / "whole")


def test_another_process_is_refused(metals, tmp_path) -> None:
    labels = KeptLabels(tmp_path / "out")
    with (
        labels.open({"settings": 1}),
        pytest.raises(EvenfieldError, match="is written by another process"),
        labels.open({"settings": 1}),
    ):
        pass


def test_outcomes_come_back_to_the_last_bit() -> None:
    atoms = Atoms("AuCu", np.random.default_rng(0).normal(size=(2, 3)), cell=np.eye(3), pbc=True)
    forces = np.random.default_rng(1).normal(size=(2, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=1 / 3, forces=forces)
    made = Made(29, 47, atoms, "x", ("dense", "dense"), "why")
    again = Made.from_dict(made.to_dict())
    assert again.atoms == atoms and (again.refused, again.failure) == (made.refused, "why")
    np.testing.assert_array_equal(again.atoms.calc.results["forces"], forces)
    assert again.atoms.calc.results["energy"] == 1 / 3
    nothing = Made(29, 47, None, "", ("dense",))
    assert Made.from_dict(nothing.to_dict()) == nothing


def test_a_stop_after_the_data_set_took_its_place_is_over_at_the_next_call(
    metals: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(KeptLabels, "remove", lambda _: None)
    first = enrich(metals, out, config_of(), workers=1)
    before = shards(out)
    assert (tmp_path / "out.unfinished").exists()
    monkeypatch.undo()

    # and nothing is labelled again
    monkeypatch.setitem(CALLS, "until", CALLS["made"])
    assert enrich(metals, out, config_of(), workers=1) == first
    assert shards(out) == before
    assert not (tmp_path / "out.unfinished").exists()
    with pytest.raises(DestinationError, match="already exists"):
        enrich(metals, out, config_of(), workers=1)


@pytest.mark.parametrize("fault", ["die", "leave"])
def test_an_oracle_that_ends_its_process_is_named(metals: Path, tmp_path: Path, fault: str) -> None:
    out = tmp_path / "out"
    settings = {"log": str(tmp_path / "log"), "faults": dict.fromkeys(range(200), fault)}
    odd = config_of(
        oracle="odd_oracle:OddOracle", oracle_settings=settings, structures_per_element=1
    )
    wanted = {
        "die": (WorkerEndedError, "was ended by what it computed"),
        # as any other failure of a calculation
        "leave": (EnrichError, "gives no structure that odd_oracle:OddOracle labels"),
    }
    error, message = wanted[fault]
    with pytest.raises(error, match=message):
        enrich(metals, out, odd, workers=2)
    assert not out.exists()


def test_a_calculator_that_leaves_while_it_relaxes_counts_as_failed(
    metals: Path, tmp_path: Path
) -> None:
    settings = {"log": str(tmp_path / "log"), "faults": dict.fromkeys(range(200), "leave")}
    relaxation = {"calculator": "odd_oracle:OddOracle", "calculator_settings": settings}
    odd = config_of(relaxation=relaxation, structures_per_element=1)
    with pytest.raises(EnrichError, match="gives no structure"):
        enrich(metals, tmp_path / "out", odd, workers=1)
