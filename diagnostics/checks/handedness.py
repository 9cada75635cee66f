"""Do mirror images have the same energy, and do homochiral and heterochiral pairs differ?

A chiral molecule and its mirror image have the same energy, and mirrored forces. A pair of two
equal enantiomers (like hands) is not the mirror image of a pair of two opposite ones (unlike
hands), so their energies differ. This is how a crystal or an enzyme distinguishes enantiomers.
Which pair is lower depends on the arrangement of the molecules; an oracle tells whether a potential
prefers the right one.

The test molecule is CHFClBr if its elements are known. Otherwise, five-atom clusters of one element
with four different bond lengths are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii
from scipy.spatial.transform import Rotation

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import ask
from ..sanity.config import SanityConfig, Suite
from ..sanity.oracle import oracle_of
from ..sanity.verdicts import failures, with_progress


# Directions to the corners of a tetrahedron, and bond lengths of a cluster relative to twice the
# covalent radius.
CORNERS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
BONDS = np.array([1.00, 1.08, 1.17, 1.27])
MOLECULE = "CHFClBr"
# bond lengths of carbon to H, F, Cl and Br, A
MOLECULE_BONDS = np.array([1.09, 1.36, 1.76, 1.93])
MIRROR = np.diag([1.0, 1.0, -1.0])

# Distance between the nearest atoms of two molecules, relative to the sum of their covalent radii.
APART = 2.2
ELEMENTS: dict[Suite, int] = {"quick": 6, "standard": 20, "full": 103}
ARRANGEMENTS: dict[Suite, int] = {"quick": 4, "standard": 10, "full": 30}

# Allowed difference of mirror images: relative to the largest force, times 1 A for energies.
EQUAL = 1e-6
SMALLEST_FORCE = 1e-2  # eV/A
# Energy difference between like and unlike pairs, in eV, below which it is only rounding.
TOLD_APART = 1e-7
# Smallest share of arrangements in which the potential must prefer the same pair as the oracle.
RIGHT = 0.9


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Do mirror images have equal energies, and like and unlike pairs different ones?

    Example: evenfield check handedness evenfield-1 elements=[C,H,F,Cl,Br] suite=quick
    """
    calculator = model.calculator("float64")
    oracle = oracle_of(settings)
    arrangements = ARRANGEMENTS[settings.suite]

    found = []
    for atoms in with_progress("handedness", subjects(model, settings)):
        found.append(hands_of(calculator, oracle, atoms, arrangements, settings.seed))
    figures = [Figure("chiral things", len(found), "", at_least=1)]
    lines: list[str] = []
    # `not <=` also catches NaN
    for what, names in (
        ("mirror images of another energy", [h.name for h in found if not h.energy_error <= EQUAL]),
        ("mirror images of other forces", [h.name for h in found if not h.force_error <= EQUAL]),
        (
            "like and unlike hands that are not told apart",
            [h.name for h in found if not np.abs(h.preferences).min() >= TOLD_APART],
        ),
    ):
        figure, named = failures(what, names)
        figures.append(figure)
        lines += named

    if found and oracle is not None:
        right = np.concatenate([np.sign(h.preferences) == np.sign(h.expected) for h in found])
        share = float(right.mean())
        figures.append(Figure("right choices of a hand", share, "", at_least=RIGHT))
        lines.append(f"the oracle's choice is found in {right.sum()} of {len(right)} arrangements")
    for each in found[:1]:
        shown = " ".join(f"{1000 * value:.3g}" for value in each.preferences)
        lines.append(f"{each.name}: like minus unlike hands, meV: {shown}")
    return CheckResult(figures, lines)


@dataclass(frozen=True)
class Hands:
    """Results for one chiral molecule or cluster; NaN if the calculator fails.

    energy_error, force_error: difference of mirror images, relative to the largest force; the
    energy in units of this force times 1 A.
    preferences, expected: (A,) energy of the like pair minus energy of the unlike pair in each of A
    arrangements, in eV, by the potential and by the oracle.
    """

    name: str
    energy_error: float
    force_error: float
    preferences: np.ndarray
    expected: np.ndarray


def subjects(model: CheckedCalculator, settings: SanityConfig) -> list[Atoms]:
    """CHFClBr, or one chiral cluster for each of some elements."""
    if {"C", "H", "F", "Cl", "Br"} <= set(settings.chosen(model.symbols)):
        outer = CORNERS * MOLECULE_BONDS[:, None]
        return [Atoms(MOLECULE, np.concatenate([np.zeros((1, 3)), outer]))]
    clusters = []
    for symbol in settings.spread(model.symbols, ELEMENTS[settings.suite]):
        bonds = BONDS * 2 * covalent_radii[atomic_numbers[symbol]]
        outer = CORNERS * bonds[:, None]
        clusters.append(Atoms(f"{symbol}5", np.concatenate([np.zeros((1, 3)), outer])))
    return clusters


def hands_of(
    calculator: Calculator,
    oracle: Calculator | None,
    atoms: Atoms,
    arrangements: int,
    seed: int,
) -> Hands:
    """Compare a chiral molecule or cluster with its mirror image, alone and in pairs."""
    left = ask(calculator, atoms)
    right = ask(calculator, mirrored(atoms))
    scale = max(float(np.abs(left.forces).max()), SMALLEST_FORCE)

    rng = np.random.default_rng(seed)
    preferences = []
    expected = []
    for _ in range(arrangements):
        tilts = Rotation.random(2, random_state=rng)
        preferences.append(preference(calculator, atoms, tilts))
        if oracle is not None:
            expected.append(preference(oracle, atoms, tilts))
    return Hands(
        str(atoms.symbols),
        energy_error=abs(left.energy - right.energy) / scale,
        force_error=float(np.abs(left.forces @ MIRROR - right.forces).max()) / scale,
        preferences=np.array(preferences),
        expected=np.array(expected),
    )


def preference(calculator: Calculator, atoms: Atoms, tilts: Rotation) -> float:
    """Energy of the like pair minus energy of the unlike pair, in eV.

    tilts: two rotations, one for each member of a pair.
    """
    energies = []
    for second in (atoms, mirrored(atoms)):
        energies.append(ask(calculator, pair(atoms, second, tilts)).energy)
    return energies[0] - energies[1]


def mirrored(atoms: Atoms) -> Atoms:
    """The mirror image of the atoms."""
    image = atoms.copy()
    image.positions = image.positions @ MIRROR
    return image


def pair(first: Atoms, second: Atoms, tilts: Rotation) -> Atoms:
    """Two molecules, each rotated by its tilt, side by side and as close as their radii allow."""
    below = first.copy()
    below.positions = tilts[0].apply(below.positions)
    above = second.copy()
    above.positions = tilts[1].apply(above.positions)

    radii = covalent_radii[first.numbers]
    allowed = APART * (radii[:, None] + radii[None, :])
    # shift along x until no two atoms are closer than allowed: the largest shift of any pair counts
    difference = above.positions[None, :] - below.positions[:, None]
    across = np.square(difference[..., 1:]).sum(axis=-1)
    needed = np.sqrt(np.clip(allowed**2 - across, 0, None)) - difference[..., 0]
    above.positions[:, 0] += needed.max()
    together: Atoms = below + above
    return together
