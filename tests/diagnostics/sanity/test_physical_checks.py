"""Each physical check passes where EMT is right, and fails where a fault was planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from evenfield.diagnostics.check import check_function
from evenfield.diagnostics.checks import bound, crystals, dynamics, elastic, relaxations
from evenfield.diagnostics.checks.lattice import reference_of
from evenfield.diagnostics.sanity.answers import Dimer, ask, dimer_curves
from evenfield.diagnostics.sanity.config import SanityConfig
from evenfield.diagnostics.sanity.crystals import minimum
from evenfield.diagnostics.sanity.equation_of_state import fit_birch_murnaghan
from evenfield.diagnostics.sanity.reference.tables import (
    ElementalPhase,
    diatomics,
    elemental_phases,
)
from evenfield.diagnostics.sanity.systems import SYSTEMS, PairDistances, System

from broken_calculators import (
    METALS,
    Checked,
    Drift,
    Hole,
    Shifted,
    SoftShear,
    StrongForces,
    WrongStress,
    failed,
    made,
    values,
)


# EMT itself has holes in Al-Pd, Al-Pt and Al-Au; these have none.
WITHOUT_HOLES = ["Cu", "Ag", "Au", "Ni"]


# --- repulsion


def test_metals_repel() -> None:
    result = made("repulsion", EMT, WITHOUT_HOLES)
    assert result.passed, result.lines
    assert values(result)["pairs"] == 10
    assert not result.pictures


def test_holes_of_emt_itself_are_found() -> None:
    """EMT gains energy when aluminium and platinum are pressed into each other below 0.8 A."""
    result = made("repulsion", EMT, ["Al", "Pt"])
    assert failed(result) == ["pairs with a hole"]
    assert "pairs with a hole: Al-Pt" in result.lines
    assert result.pictures["repulsion.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("calculator", "fault"),
    [(Hole, "pairs with a hole"), (StrongForces, "pairs with a false force")],
)
def test_faults_at_short_distance_are_found(calculator: type[EMT], fault: str) -> None:
    assert failed(made("repulsion", calculator, ["Cu", "Ag"])) == [fault]


def test_lennard_jones_repels() -> None:
    # the well of ASE's defaults is at 1.12 A, beyond the distances that are looked at
    assert made("repulsion", LennardJones, ["H", "C"]).passed


def test_many_dimers_in_one_call_are_those_of_single_calls() -> None:
    dimers = [Dimer(a, b, r) for a in ("Cu", "Al") for b in ("Cu", "Au") for r in (0.5, 2.0, 3.1)]
    energies, forces = dimer_curves(EMT(), dimers)
    for dimer, energy, force in zip(dimers, energies, forces, strict=True):
        alone = ask(EMT(), dimer.atoms())
        assert energy == pytest.approx(alone.energy, abs=1e-8)
        assert force == pytest.approx(alone.forces[1, 0], abs=1e-8)


def test_atoms_that_feel_each_other_everywhere_are_asked_for_alone() -> None:
    """A calculator with infinite range must not be asked for many dimers at once."""

    class Everywhere(EMT):
        def calculate(self, *arguments: object, **options: object) -> None:
            super().calculate(*arguments, **options)
            number = len(self.atoms)
            self.results["energies"] = self.results["energies"] + number
            self.results["energy"] += number**2

    dimers = [Dimer("Cu", "Cu", distance) for distance in np.linspace(1.5, 3, 8)]
    energies, _ = dimer_curves(Everywhere(), dimers)
    assert energies[3] == pytest.approx(ask(EMT(), dimers[3].atoms()).energy + 4)


# --- bound


def test_metals_are_bound() -> None:
    result = made("bound", EMT, METALS)
    assert result.passed, result.lines
    # Cu2 is the only molecule of the table that consists of these metals
    assert values(result)["molecules of two atoms"] == 1
    assert "H2" in result.skipped and "Cu2" not in result.skipped
    assert len(result.skipped) == 24


def test_crystals_above_free_atoms_are_found_where_free_atoms_mean_something() -> None:
    fault = "crystals that are not below the free atom"
    assert failed(made("bound", Shifted, METALS)) == [fault]
    measured = made("bound", Shifted, METALS, free_atoms=False)
    assert measured.passed and values(measured)[fault] == len(METALS)


def test_a_free_atom_with_a_force_is_found() -> None:
    assert "free atoms that are not finite and at rest" in failed(made("bound", Drift, ["Cu"]))


def test_minima_are_counted() -> None:
    grid = np.linspace(0.6, 3.0, 200)
    morse = (1 - np.exp(-3 * (grid - 1))) ** 2
    assert len(bound.deep_minima(morse)) == 1
    second = morse - 0.2 * np.exp(-(((grid - 2.2) / 0.1) ** 2))
    assert len(bound.deep_minima(second)) == 2
    wrinkled = morse - 0.01 * np.exp(-(((grid - 2.2) / 0.1) ** 2))
    assert len(bound.deep_minima(wrinkled)) == 1
    assert bound.deep_minima(np.exp(-grid)) == []


def test_tight_binding_has_molecules_of_the_right_length() -> None:
    pytest.importorskip("tblite", reason="comes with the demo extra")
    from tblite.ase import TBLite

    def calculator() -> Calculator:
        return TBLite(method="GFN1-xTB", electronic_temperature=1500.0, verbosity=0)

    # not its crystals: tight binding of small cells needs k-points, which tblite lacks
    chosen = [each for each in diatomics() if each.name in ("H2", "HF")]
    for curve in bound.curves(calculator(), chosen):
        assert not curve.fault, curve
        assert curve.length == pytest.approx(curve.expected, rel=0.05)

    config = SanityConfig(suite="quick")
    water = check_function("water")(Checked(calculator, ["H", "O"]), config)
    assert water.passed, water.lines


# --- crystals and lattice parameters


def reference_of_emt() -> dict[str, dict[str, ElementalPhase]]:
    """EMT's own volumes and moduli from a dense curve: another route than the check's."""
    table = {}
    for symbol, edge in {"Cu": 3.59, "Pd": 3.879}.items():
        volumes = []
        energies = []
        for scale in np.linspace(0.99, 1.01, 9):
            atoms = bulk(symbol, "fcc", a=edge * scale)
            atoms.calc = EMT()
            volumes.append(atoms.get_volume())
            energies.append(atoms.get_potential_energy())
        a, b, _ = np.polyfit(volumes, energies, 2)
        volume = -b / (2 * a)
        modulus = 2 * a * volume * 160.21766
        # the other structures only need a place to start from
        phases = {
            name: ElementalPhase(volume * room, modulus, 1000.0)
            for name, room in (("bcc", 1.0), ("sc", 1.15), ("diamond", 1.6))
        }
        table[symbol] = {"fcc": ElementalPhase(volume, modulus, 0.0), **phases}
    return table


def test_crystals_of_emt_against_its_own_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    table = reference_of_emt()
    assert table["Cu"]["fcc"].bulk_modulus == pytest.approx(133, rel=0.03)
    monkeypatch.setattr(crystals, "elemental_phases", lambda: table)
    result = made("crystals", EMT, METALS, suite="standard", reference="pbe")
    assert result.passed, result.lines
    assert values(result)["elements"] == 2
    assert values(result)["median error of the volume"] < 0.1
    assert values(result)["median error of the modulus"] < 3


def test_volumes_are_judged_only_by_their_own_functional() -> None:
    """EMT's silver was fitted to experiment: its volume is 6 % below that of PBE."""
    assert failed(made("crystals", EMT, ["Ag"], reference="pbe")) == ["median error of the volume"]
    as_experiment = made("crystals", EMT, ["Ag"])
    assert as_experiment.passed
    assert 5 < values(as_experiment)["median error of the volume"] < 7


def test_a_crystal_without_a_minimum_is_found() -> None:
    class Collapse(EMT):
        """Energy falls with the volume."""

        def calculate(self, *arguments: object, **options: object) -> None:
            super().calculate(*arguments, **options)
            if self.atoms.pbc.any():
                self.results["energy"] += 5.0 * self.atoms.get_volume()

    result = made("crystals", Collapse, ["Cu"])
    assert "elements without a minimum" in failed(result)
    assert "elements without a minimum: Cu" in result.lines


def test_the_table_of_elements() -> None:
    """Known figures of PBE: Si in diamond 5.47 A and 89 GPa, W in bcc 3.18 A and 304 GPa."""
    table = elemental_phases()
    assert len(table) == 95
    silicon = table["Si"]["diamond"]
    assert (8 * silicon.volume) ** (1 / 3) == pytest.approx(5.47, abs=0.01)
    assert silicon.bulk_modulus == pytest.approx(89, abs=2)
    tungsten = table["W"]["bcc"]
    assert (2 * tungsten.volume) ** (1 / 3) == pytest.approx(3.18, abs=0.01)
    assert tungsten.bulk_modulus == pytest.approx(304, abs=5)
    for phases in table.values():
        assert min(phase.above for phase in phases.values()) == 0


def test_birch_murnaghan_gives_back_its_parameters() -> None:
    volume, modulus, slope = 12.0, 0.9, 5.0
    volumes = np.linspace(11.3, 12.7, 7)
    x = (volume / volumes) ** (2 / 3)
    energies = -3.5 + 9 * volume * modulus / 16 * (
        (x - 1) ** 3 * slope + (x - 1) ** 2 * (6 - 4 * x)
    )
    fit = fit_birch_murnaghan(volumes, energies)
    assert fit.volume == pytest.approx(volume, rel=1e-6)
    assert fit.energy == pytest.approx(-3.5, rel=1e-6)
    assert fit.bulk_modulus == pytest.approx(modulus * 160.21766, rel=1e-5)
    assert np.isnan(fit_birch_murnaghan(volumes, -volumes).volume)


def test_lattice_parameters_of_emt() -> None:
    """EMT was fitted to experiment, and is not PBE: silver is almost 2 % too small for that."""
    assert made("lattice", EMT, METALS).passed
    against_pbe = made("lattice", EMT, ["Ag"], reference="pbe")
    assert against_pbe.lines == ["Ag     4.064 A, pbe 4.146 A, -2.0 %"]


@pytest.mark.parametrize(
    ("level", "reference"),
    [
        ("mp_pbe", "pbe"),
        ("PBE", "pbe"),
        ("PBEsol", "experiment"),
        ("revPBE-D3", "experiment"),
        ("EMT", "experiment"),
    ],
)
def test_a_level_is_compared_with_its_like(level: str, reference: str) -> None:
    assert reference_of(level) == reference


# --- elastic constants


def test_elastic_constants_of_emt() -> None:
    """Copper's were computed by matscipy: 172.6, 115.4 and 89.9 GPa."""
    found = elastic.elastic_constants(EMT(), "Cu", "fcc")
    assert found is not None
    for constants in (found.by_energy, found.by_stress):
        expected = pytest.approx([172.6, 115.4, 89.9], rel=0.01)
        assert [constants.c11, constants.c12, constants.c44] == expected
    assert made("elastic", EMT, METALS).passed


def test_a_wrong_sign_of_the_stress_is_found() -> None:
    found = failed(made("elastic", WrongStress, ["Cu"]))
    assert "crystals whose stress is not the derivative of the energy" in found


def test_a_soft_shear_is_found() -> None:
    assert failed(made("elastic", SoftShear, ["Cu"])) == ["unstable crystals"]


# --- dynamics and relaxations


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamics in parts of 60 steps, 120 steps at least."""
    monkeypatch.setattr(dynamics, "PART", 60)


@pytest.mark.usefixtures("short_parts")
def test_dynamics_of_copper() -> None:
    result = made("dynamics", EMT, ["Cu"], picoseconds=0.3)
    assert result.passed, result.lines
    assert values(result)["largest drift"] < 2
    # water, salts and others, which consist of other elements
    assert len(result.skipped) == 7


@pytest.mark.usefixtures("short_parts")
def test_a_force_that_does_work_for_ever_is_found() -> None:
    assert failed(made("dynamics", Drift, ["Cu"], picoseconds=0.24)) == [
        "systems whose energy drifts"
    ]


@pytest.mark.usefixtures("short_parts")
def test_an_explosion_is_found() -> None:
    """Forces of the wrong sign push atoms away from their places."""

    class Repelled(EMT):
        def calculate(self, *arguments: object, **options: object) -> None:
            super().calculate(*arguments, **options)
            self.results["forces"] = -3 * self.results["forces"]

    assert failed(made("dynamics", Repelled, ["Cu"], picoseconds=0.24)) == [
        "systems that explode or fuse"
    ]


def cluster() -> System:
    (found,) = [system for system in SYSTEMS if system.name == "Cu13"]
    return found


def test_relaxation_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not relaxations.relax(EMT(), cluster(), seed=0).failure
    monkeypatch.setattr(relaxations, "MAX_STEPS", 60)
    assert "not converged" in relaxations.relax(Drift(), cluster(), seed=0).failure


def test_fused_pairs() -> None:
    (water,) = [system for system in SYSTEMS if system.name.startswith("water")]
    start = water.atoms()
    distances = PairDistances(start)
    assert distances.fused(start) is None
    fused = start.copy()
    oxygens = [atom.index for atom in start if atom.symbol == "O"][:2]
    fused.positions[oxygens[1]] = fused.positions[oxygens[0]] + [1.1, 0, 0]
    assert distances.fused(fused) is not None


def test_systems_are_sound() -> None:
    """Names are unique, no two atoms overlap, and no system is large."""
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS) >= 30
    assert sum(system.is_quick for system in SYSTEMS) == 8
    for system in SYSTEMS:
        atoms = system.atoms()
        assert 8 <= len(atoms) <= 50, system.name
        distances = atoms.get_all_distances(mic=True)
        assert distances[distances > 0].min() > 0.9, system.name
        assert PairDistances(atoms).fused(atoms) is None, system.name


class Interrupted(EMT):
    """EMT that is stopped by the user after a number of calls."""

    calls = 0
    stop_after = 10**9

    def calculate(self, *arguments: object, **options: object) -> None:
        type(self).calls += 1
        if self.calls > self.stop_after:
            raise KeyboardInterrupt
        super().calculate(*arguments, **options)


@pytest.mark.usefixtures("short_parts")
def test_dynamics_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same figures as without a stop, and only the unfinished part is computed again."""
    check = check_function("dynamics")
    config = SanityConfig(suite="quick", picoseconds=0.36)
    whole = check(Checked(EMT, ["Cu"]), config)

    monkeypatch.setattr(Interrupted, "calls", 0)
    monkeypatch.setattr(Interrupted, "stop_after", 150)
    stopped = Checked(Interrupted, ["Cu"])
    with pytest.raises(KeyboardInterrupt):
        check(stopped, config, folder=tmp_path)

    monkeypatch.setattr(Interrupted, "calls", 0)
    monkeypatch.setattr(Interrupted, "stop_after", 10**9)
    damaged = shutil.copytree(tmp_path, tmp_path.with_name("damaged"))
    resumed = check(stopped, config, folder=tmp_path)
    assert 55 < Interrupted.calls < 90
    assert values(resumed) == pytest.approx(values(whole), rel=1e-6)

    monkeypatch.setattr(Interrupted, "stop_after", 0)
    assert check(stopped, config, folder=tmp_path).as_dict() == resumed.as_dict()

    # a state with another digit is computed again from its beginning
    monkeypatch.setattr(Interrupted, "calls", 0)
    monkeypatch.setattr(Interrupted, "stop_after", 10**9)
    (state,) = damaged.rglob("state-Cu.json")
    state.write_text(state.read_text().replace('"steps": 1', '"steps": 9'))
    assert values(check(stopped, config, folder=damaged)) == pytest.approx(values(whole), rel=1e-6)
    assert Interrupted.calls > 150
    assert "does not match its checksum: state Cu is made again" in capsys.readouterr().err


@pytest.mark.usefixtures("short_parts")
def test_other_settings_do_not_read_an_earlier_result(tmp_path: Path) -> None:
    check = check_function("dynamics")
    first = check(Checked(EMT, ["Cu"]), SanityConfig(suite="quick", picoseconds=0.24), tmp_path)
    second = check(
        Checked(EMT, ["Cu"]), SanityConfig(suite="quick", picoseconds=0.24, seed=1), tmp_path
    )
    assert values(first)["largest drift"] != values(second)["largest drift"]


def test_minimum_of_a_crystal_is_the_same_from_any_start() -> None:
    volumes = [minimum(EMT(), "Cu", "fcc", start).volume for start in (10.0, 11.6, 13.0)]
    assert volumes == pytest.approx([volumes[0]] * 3, rel=1e-4)
