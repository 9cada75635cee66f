"""The checks of torque, vibrations, hands, locality, mixing and stationary points.

Known answers of pair potentials, Lennard-Jones clusters and GFN1-xTB, and planted faults.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.neighborlist import neighbor_list

from evenfield.diagnostics.check import CheckError
from evenfield.diagnostics.checks import (
    beads,
    handedness,
    locality,
    mixing,
    stationary,
    torque,
    vibrations,
)
from evenfield.diagnostics.sanity import equation_of_state
from evenfield.diagnostics.sanity.answers import ask, ask_many
from evenfield.diagnostics.sanity.config import SanityConfig

from broken_calculators import METALS, Checked, Drift, StrongForces, failed, made, values
from pair_calculators import (
    Alloy,
    Bonds,
    Charges,
    Filled,
    Handed,
    Held,
    Near,
    Nitrogen,
    Nothing,
    Pairs,
    Parting,
    ScreenedCharges,
    SoftNitrogen,
    Springs,
    Twisted,
    TwoMinima,
    Upside,
)


PNG = b"\x89PNG"
HALOGENS = ["H", "C", "F", "Cl", "Br"]
QUICK = SanityConfig(suite="quick")


def test_many_clusters_are_what_they_are_alone() -> None:
    clusters = [
        Atoms("Cu2", [[0, 0, 0], [2.2, 0, 0]]),
        Atoms("Ag"),
        Atoms("CuAg", [[0] * 3, [3] * 3]),
    ]
    together = ask_many(EMT(), clusters)
    for found, cluster in zip(together, clusters, strict=True):
        alone = ask(EMT(), cluster)
        assert found.energy == pytest.approx(alone.energy, abs=1e-9)
        assert found.forces == pytest.approx(alone.forces, abs=1e-9)


# --- torque


def test_the_torque_of_pairs_is_the_sum_over_pairs() -> None:
    found = torque.turned(Pairs(), "Cu", seed=0)
    atoms = torque.two_triangles("Cu", 0)
    expected = np.zeros(3)
    for one in range(3):
        for other in range(3, 6):
            away = atoms.positions[one] - atoms.positions[other]
            distance = np.linalg.norm(away)
            _, slope = Pairs().phi(distance)
            arm = atoms.positions[one] - atoms.positions[:3].mean(axis=0)
            expected += np.cross(arm, -slope * away / distance)
    assert found.torque == pytest.approx(expected, abs=1e-10)
    assert found.slope == pytest.approx(expected, abs=1e-6)
    assert made("torque", EMT, METALS).passed


@pytest.mark.parametrize(
    ("calculator", "faults"),
    [
        (StrongForces, ["elements whose torque is not the slope of the energy"]),
        (Drift, ["elements that push themselves"]),
        (
            Twisted,
            [
                "elements that turn themselves",
                "elements whose torque is not the slope of the energy",
            ],
        ),
    ],
)
def test_faults_of_torques_are_found(calculator: type[Calculator], faults: list[str]) -> None:
    assert failed(made("torque", calculator, ["Cu"])) == faults


# --- vibrations


def test_three_atoms_on_springs_vibrate_as_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """k / m for the symmetric stretch, k / m (1 + 2 m / M) for the other (Landau, Lifshitz)."""
    monkeypatch.setattr(vibrations, "STEP", 1e-4)

    class Carbon(Springs):
        constant = 100.0
        rest = 1.16
        reach = 1.5

    atoms = Atoms("OCO", [[0, 0, 0], [1.16, 0, 0], [2.32, 0, 0]])
    hessian = vibrations.second_derivatives(Carbon(), atoms)
    masses = atoms.get_masses()
    waves = vibrations.wave_numbers(hessian, masses)
    # eV/A^2 over u as 1/cm
    factor = np.sqrt(units._e * 1e20 / units._amu) / (2 * np.pi * units._c * 100)
    symmetric = factor * np.sqrt(100 / masses[0])
    asymmetric = symmetric * np.sqrt(1 + 2 * masses[0] / masses[1])
    assert waves[-2:] == pytest.approx([symmetric, asymmetric], rel=1e-6)


def test_vibrations_of_a_morse_pair() -> None:
    found = vibrations.vibrations_of(Nitrogen(), molecule("N2"))
    curvature = 2 * Nitrogen.depth * Nitrogen.exponent**2
    factor = np.sqrt(units._e * 1e20 / units._amu) / (2 * np.pi * units._c * 100)
    expected = factor * np.sqrt(curvature / (14.007 / 2))
    # differences over 0.005 A see the anharmonicity of the well
    assert found.frequencies == pytest.approx([expected], rel=1e-3)
    assert found.is_whole and found.is_minimum
    result = made("vibrations", Nitrogen, ["N"])
    assert result.passed, result.lines
    assert result.skipped == ["H2", "H2O", "CO2", "CH4"]


def test_molecules_of_a_tight_binding_method_are_near_experiment() -> None:
    tblite = pytest.importorskip("tblite.ase", reason="comes with the demo extra")

    class GFN1(tblite.TBLite):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(method="GFN1-xTB", verbosity=0, accuracy=0.01)

    result = made("vibrations", GFN1, ["H", "O"])
    assert result.passed, result.lines
    assert values(result)["median error against experiment"] < 0.1


def test_faults_of_vibrations_are_found() -> None:
    twisted = failed(made("vibrations", Twisted, ["N"]))
    assert "molecules with asymmetric second derivatives" in twisted
    assert failed(made("vibrations", Held, ["N"])) == [
        "molecules that are not free to move and turn"
    ]
    # two atoms of Pairs rest at 2.2 A
    assert failed(made("vibrations", Pairs, ["N"])) == ["molecules that fall apart"]

    soft = made("vibrations", SoftNitrogen, ["N"])
    assert failed(soft) == ["median error against experiment"]
    oracle = "pair_calculators:Nitrogen"
    assert failed(made("vibrations", SoftNitrogen, ["N"], oracle=oracle)) == [
        "median error against the oracle"
    ]


def test_an_oracle_that_cannot_be_made_is_named() -> None:
    with pytest.raises(CheckError, match="oracle=pair_calculators:Missing"):
        made("vibrations", Nitrogen, ["N"], oracle="pair_calculators:Missing")


# --- beads


@pytest.mark.parametrize("number", [1, 2, 5, 16])
def test_beads_of_a_harmonic_mode_are_those_of_the_matrix_of_the_ring(number: int) -> None:
    """The mean energy from the inverse of the matrix of all springs, at P times the temperature.

    By the virial theorem it is twice the potential energy, averaged over the beads.
    """
    wave_number, temperature = 1500.0, 300.0
    frequency = wave_number * units.invcm / (units._hbar / units._e * units.s)
    thermal = units.kB * temperature
    stiffness = (number * thermal / (units._hbar / units._e * units.s)) ** 2
    ring = 2 * np.eye(number) - np.roll(np.eye(number), 1, 0) - np.roll(np.eye(number), -1, 0)
    matrix = frequency**2 * np.eye(number) + stiffness * ring
    variances = number * thermal * np.diag(np.linalg.inv(matrix))
    expected = frequency**2 * variances.mean()
    assert beads.bead_energy([wave_number], temperature, number) == pytest.approx(expected)


def test_many_beads_are_a_quantum_oscillator() -> None:
    exact = beads.quantum_energy([500.0, 3000.0], 300.0)
    half_quanta = 3500 / 2 * units.invcm
    # the first of the modes is excited a little
    assert 1.0 < exact / half_quanta < 1.1
    assert beads.bead_energy([500.0, 3000.0], 300.0, 512) == pytest.approx(exact, rel=1e-3)
    assert beads.bead_energy([500.0, 3000.0], 300.0, 1) == pytest.approx(2 * units.kB * 300)
    # a classical particle at a high temperature
    assert beads.beads_needed([500.0], 5000.0) == 1
    assert beads.beads_needed([3000.0], 300.0) > beads.beads_needed([3000.0], 1000.0)


def test_the_error_of_curvature_is_told_from_that_of_beads() -> None:
    result = made("beads", Nitrogen, ["N"])
    assert result.passed, result.lines
    assert result.pictures["beads.png"].startswith(PNG)
    soft = made("beads", SoftNitrogen, ["N"], oracle="pair_calculators:Nitrogen")
    name = "median error by curvature, against the oracle"
    assert failed(soft) == [name]
    # two atoms have one mode, deep in its ground state: energy goes as the root of the curvature
    expected = 1 - SoftNitrogen.exponent / Nitrogen.exponent
    assert values(soft)[name] == pytest.approx(expected, rel=0.01)
    # slower modes need fewer beads
    assert values(soft)["beads for all molecules"] < values(result)["beads for all molecules"]
    assert failed(made("beads", Pairs, ["N"])) == ["molecules without real modes"]


# --- hands


def test_mirror_images_are_equal_and_pairs_are_not() -> None:
    result = made("handedness", Nitrogen, HALOGENS)
    assert result.passed, result.lines
    (molecule_of_five,) = handedness.subjects(Checked(Nitrogen, HALOGENS), QUICK)
    volume = np.linalg.det(molecule_of_five.positions[1:4])
    image = handedness.mirrored(molecule_of_five)
    assert np.linalg.det(image.positions[1:4]) == pytest.approx(-volume)
    assert len(handedness.subjects(Checked(Nitrogen, METALS), QUICK)) == 6


@pytest.mark.parametrize(
    ("calculator", "fault"),
    [
        (Handed, "mirror images of another energy"),
        (Twisted, "mirror images of other forces"),
        (Nothing, "like and unlike hands that are not told apart"),
    ],
)
def test_faults_of_hands_are_found(calculator: type[Calculator], fault: str) -> None:
    assert fault in failed(made("handedness", calculator, ["N"]))


def test_an_oracle_judges_the_choice_of_a_hand() -> None:
    name = "right choices of a hand"
    assert (
        values(made("handedness", Nitrogen, ["N"], oracle="pair_calculators:Nitrogen"))[name] == 1
    )
    result = made("handedness", Upside, ["N"], oracle="pair_calculators:Nitrogen")
    assert values(result)[name] == 0 and failed(result) == [name]


def test_two_molecules_touch_and_do_not_overlap() -> None:
    (one,) = handedness.subjects(Checked(Nitrogen, HALOGENS), QUICK)
    for seed in range(5):
        tilts = handedness.Rotation.random(2, random_state=np.random.default_rng(seed))
        atoms = handedness.pair(one, one, tilts)
        radii = handedness.covalent_radii[atoms.numbers]
        ratios = (atoms.get_all_distances() / (radii[:, None] + radii))[:5, 5:]
        assert ratios.min() == pytest.approx(handedness.APART, rel=1e-6)


# --- locality


class Neighbours(Springs):
    """Springs without tension in the crystal of the check."""

    rest = 3.61 / np.sqrt(2)
    reach = 1.2 * rest


def test_the_response_of_springs_is_their_constant() -> None:
    """k to each of the twelve neighbours, and 4 k of its own."""
    atoms = bulk("Cu", a=3.61, cubic=True) * 3
    found = locality.response_of(Neighbours(), atoms)
    assert found.responses[0] == pytest.approx(4 * 2.0, rel=1e-4)
    assert found.responses[1:13] == pytest.approx(np.full(12, 2.0), rel=1e-4)
    assert found.responses[13:].max() < 1e-3
    assert found.reach == pytest.approx(3.61 / np.sqrt(2))
    assert found.sum < 1e-9


def test_locality_of_copper_and_its_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(locality.CRYSTALS, "Cu", ("fcc", 3.61, 2))
    result = made("locality", EMT, ["Cu"])
    assert result.passed and result.pictures["locality.png"].startswith(PNG)
    assert result.skipped == ["Si", "NaCl"]
    assert failed(made("locality", Held, ["Cu"])) == ["crystals whose responses do not sum to zero"]

    result = made("locality", Neighbours, ["Cu"], oracle="pair_calculators:Near")
    assert failed(result) == ["Cu: response that cannot be felt"]
    same = made("locality", Near, ["Cu"], oracle="pair_calculators:Near")
    assert values(same)["Cu: response that cannot be felt"] == 0


def test_bare_charges_reach_far_and_screened_ones_do_not() -> None:
    atoms = bulk("Cu", a=3.61, cubic=True) * 4
    bare = locality.response_of(Charges(), atoms)
    law = bare.decay()
    assert law is not None and law.is_power
    assert law.exponent == pytest.approx(3, abs=0.3)
    assert str(law).startswith("r^-")
    # the error of a cutoff falls as the root of the integral of r^-6 outside, cut off by the cell
    ratio = bare.truncation_error(6) / bare.truncation_error(3)
    assert 2**-2.2 < ratio < 2**-1.3

    screened = locality.response_of(ScreenedCharges(), atoms)
    law = screened.decay()
    assert law is not None and not law.is_power
    # the second derivative of exp(-r / l) / r falls a little faster than exp(-r / l)
    assert 0.7 * ScreenedCharges.length < law.length < ScreenedCharges.length
    assert screened.truncation_error(6) < 0.1 * bare.truncation_error(6)


def test_what_ends_after_a_few_shells_has_no_law() -> None:
    found = locality.response_of(Neighbours(), bulk("Cu", a=3.61, cubic=True) * 3)
    assert found.decay() is None
    assert found.truncation_error(3) < 1e-6
    # and what never answers misses nothing
    silent = locality.response_of(Nothing(), bulk("Cu", a=3.61, cubic=True))
    assert silent.decay() is None and silent.truncation_error(3) == 0


# --- mixing


class Equal(Alloy):
    """All metals have the volume that the check expects of gold, so nothing strains."""

    rest = (4 * 17.9) ** (1 / 3) / np.sqrt(2)
    reach = 1.2 * rest


class EqualParting(Equal, Parting):
    """And part."""


def test_mixing_of_bonds_is_a_count_of_bonds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "expected_volume", lambda name, structure: 17.9)
    monkeypatch.setattr(equation_of_state, "SCAN", np.linspace(0.9, 1.1, 5))
    curve = mixing.mixing_curve(Equal(), "Ag", "Au", (8, 16), seed=0)
    for fraction, energy in zip(curve.fractions[1:-1], curve.energies[1:-1], strict=True):
        atoms = bulk("Ag", a=(4 * 17.9) ** (1 / 3), cubic=True) * 2
        order = np.random.default_rng(0).permutation(32)
        atoms.symbols[order[: round(32 * fraction)]] = "Au"
        first, second = neighbor_list("ij", atoms, Equal.reach)
        unlike = (atoms.numbers[first] != atoms.numbers[second]).sum() / 2
        assert energy == pytest.approx(-0.01 * unlike / 32, abs=1e-6)
    assert curve.bend == "upwards"

    result = made("mixing", Equal, ["Ag", "Au"])
    assert result.passed, result.lines
    assert failed(made("mixing", EqualParting, ["Ag", "Au"])) == [
        "alloys that mix or part against experiment"
    ]
    result = made("mixing", EqualParting, ["Ag", "Au"], oracle=f"{__name__}:EqualParting")
    assert result.passed, result.lines


def test_alloys_of_springs_without_a_minimum_are_named() -> None:
    result = made("mixing", Nothing, ["Ag", "Au"])
    assert failed(result) == ["alloys without a finite energy"]


# --- stationary points


class Argon(LennardJones):
    """Without a cutoff that matters."""

    def __init__(self) -> None:
        super().__init__(rc=50.0, ro=40.0)


# The minima of Lennard-Jones clusters, in units of the depth: D. J. Wales and J. P. K. Doye,
# J. Phys. Chem. A 101, 5111 (1997), and the Cambridge Cluster Database.
CLUSTERS = {4: [-6.0], 5: [-9.103852], 6: [-12.712062, -12.302928]}


# A basin may be small, and which start falls into it depends on the rounding of the machine.
MOST_SEEDS = 40


@pytest.mark.parametrize("size", CLUSTERS)
def test_stationary_points_of_lennard_jones_clusters(size: int) -> None:
    found: set[int] = set()
    for seed in range(MOST_SEEDS):
        points = stationary.stationary_points(Argon(), f"Ar{size}", starts=8, seed=seed)
        for point in points:
            if point.is_minimum:
                known = [abs(point.energy - energy) < 1e-5 for energy in CLUSTERS[size]]
                assert sum(known) == 1, point.energy
                found.add(known.index(True))
        if len(found) == len(CLUSTERS[size]):
            break
    assert len(found) == len(CLUSTERS[size])
    saddles = [point for point in points if point.index == 1]
    assert saddles
    for saddle in saddles:
        # between two minima, and above both
        assert saddle.energy > CLUSTERS[size][-1]
        assert np.abs(ask(Argon(), saddle.atoms).forces).max() < stationary.FMAX


def test_false_and_missed_minima_are_found() -> None:
    true, false = "pair_calculators:Pairs", "pair_calculators:TwoMinima"
    assert made("stationary", Pairs, ["Cu"], oracle=true).passed
    assert failed(made("stationary", TwoMinima, ["Cu"], oracle=true)) == ["false minima"]
    assert failed(made("stationary", Pairs, ["Cu"], oracle=false)) == ["missed minima"]
    assert failed(made("stationary", Nothing, ["Cu"])) == []
    assert failed(made("stationary", Upside, ["Cu"])) == ["clusters without a minimum"]


def test_a_saddle_that_became_a_minimum_is_lost() -> None:
    points = stationary.stationary_points(Near(), "Cu4", starts=4, seed=0)
    (saddle,) = [point for point in points if point.index == 1]
    assert not stationary.is_lost(Near(), saddle)
    assert stationary.is_lost(Filled(), saddle)
    # the search ends at the same saddle from nearby, without climbing or falling
    displaced = saddle.atoms.copy()
    displaced.rattle(0.05, seed=1)
    again = stationary.nearest(Near(), displaced)
    assert again is not None and again.index == 1
    assert again.energy == pytest.approx(saddle.energy, abs=1e-5)

    result = made("stationary", Filled, ["Cu"], oracle="pair_calculators:Near")
    assert "lost saddles" in failed(result)


def test_bonds_hold_clusters_together() -> None:
    assert stationary.relaxed(Bonds(), Atoms("Cu2", [[0, 0, 0], [2.6, 0, 0]])) is not None
    assert stationary.relaxed(Nothing(), Atoms("Cu2", [[0, 0, 0], [9.0, 0, 0]])) is None
