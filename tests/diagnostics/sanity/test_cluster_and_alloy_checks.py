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
    Handed,
    Held,
    Near,
    Nitrogen,
    Nothing,
    Pairs,
    Parting,
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

    class Soft(Nitrogen):
        exponent = 1.5

    assert failed(made("vibrations", Soft, ["N"])) == ["median error against experiment"]
    oracle = "pair_calculators:Nitrogen"
    assert failed(made("vibrations", Soft, ["N"], oracle=oracle)) == [
        "median error against the oracle"
    ]


def test_an_oracle_that_cannot_be_made_is_named() -> None:
    with pytest.raises(CheckError, match="oracle=pair_calculators:Missing"):
        made("vibrations", Nitrogen, ["N"], oracle="pair_calculators:Missing")


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


# starts that find all of them
SEEDS = {4: 1, 5: 1, 6: 3}


@pytest.mark.parametrize("size", CLUSTERS)
def test_stationary_points_of_lennard_jones_clusters(size: int) -> None:
    points = stationary.stationary_points(Argon(), f"Ar{size}", starts=8, seed=SEEDS[size])
    minima = [point.energy for point in points if point.is_minimum]
    assert minima == pytest.approx(CLUSTERS[size], abs=1e-5)
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


def test_bonds_hold_clusters_together() -> None:
    assert stationary.relaxed(Bonds(), Atoms("Cu2", [[0, 0, 0], [2.6, 0, 0]])) is not None
    assert stationary.relaxed(Nothing(), Atoms("Cu2", [[0, 0, 0], [9.0, 0, 0]])) is None
