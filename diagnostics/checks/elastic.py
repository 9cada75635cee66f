"""Are cubic crystals stable, and do energy and stress give the same elastic constants?

M. Born: a cubic crystal is stable if C11 - C12, C11 + 2 C12 and C44 are positive. The constants
come from finite strains at the model's own lattice parameter: from the energy as second
derivatives, and from the stress as first derivatives. If the two differ, the stress is not the
derivative of the energy. For evenfield's own models, automatic differentiation also gives the
constants without finite steps. If these differ from the strains, the energy is rough on the scale
of the steps, or a derivative is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.units import GPa

from ..check import CheckedCalculator, CheckedModel, CheckResult, Figure
from ..sanity.answers import ask, at_rest
from ..sanity.config import SanityConfig
from ..sanity.crystals import ATOMS_PER_CUBE, crystal, minimum
from ..sanity.reference.tables import elemental_phases, lattices
from ..sanity.verdicts import failures, with_progress


# Crystals and their structures: metals, semiconductors, salts.
CRYSTALS = {
    **dict.fromkeys(("Cu", "Al", "Ag", "Au", "Pd", "Pt", "Ni", "Rh"), "fcc"),
    **dict.fromkeys(("Na", "W", "Fe"), "bcc"),
    **dict.fromkeys(("Si", "C", "Ge"), "diamond"),
    **dict.fromkeys(("GaAs", "SiC", "InP"), "zincblende"),
    **dict.fromkeys(("NaCl", "MgO", "LiF"), "rocksalt"),
}
QUICK = ("Cu", "Al", "Na", "W", "Si", "C", "NaCl", "MgO")

STRAINS = np.array([-0.010, -0.005, 0.0, 0.005, 0.010])
UNIAXIAL = np.diag([1.0, 0.0, 0.0])
ISOTROPIC = np.eye(3)
SHEAR = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.5, 0.0]])

# Allowed difference between two sets of constants: relative to the largest constant, plus in GPa.
AGREEMENT = 0.05
AGREEMENT_GPA = 1.0

# In these structures, the sublattices move against each other when the crystal is sheared.
HAS_INNER_STRAIN = ("diamond", "zincblende")
FMAX = 1e-4  # eV/A
MAX_STEPS = 50


@dataclass(frozen=True)
class Constants:
    """Elastic constants C11, C12 and C44 of a cubic crystal, in GPa."""

    c11: float
    c12: float
    c44: float

    @property
    def is_stable(self) -> bool:
        """Whether Born's criteria hold; False for NaN."""
        return self.c11 > self.c12 and self.c11 + 2 * self.c12 > 0 and self.c44 > 0

    def agrees(self, other: Constants) -> bool:
        """Whether two sets differ by no more than the tolerance; False for NaN."""
        mine = np.array([self.c11, self.c12, self.c44])
        theirs = np.array([other.c11, other.c12, other.c44])
        allowed = AGREEMENT_GPA + AGREEMENT * np.abs(theirs).max()
        return bool(np.abs(mine - theirs).max() <= allowed)

    def __str__(self) -> str:
        return f"{self.c11:.0f} {self.c12:.0f} {self.c44:.0f}"


@dataclass(frozen=True)
class Strained:
    """Elastic constants by finite strains; volume: of the unstrained crystal, A^3/atom."""

    by_energy: Constants
    by_stress: Constants
    volume: float


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Elastic constants of cubic crystals by energy and stress, and Born's stability.

    Example: evenfield check elastic evenfield-s elements=[Cu] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    known = set(settings.chosen(model.symbols))
    wanted = QUICK if settings.suite == "quick" else tuple(CRYSTALS)
    judged = [name for name in wanted if set(crystal_symbols(name)) <= known]
    skipped = [name for name in wanted if name not in judged]

    unstable = []
    apart = []
    rough = []
    without = []
    table = []
    for name in with_progress("elastic", judged):
        found = elastic_constants(calculator, name, CRYSTALS[name])
        if found is None:
            without.append(name)
            continue
        line = f"{name:5} C11 C12 C44 in GPa: energy {found.by_energy}, stress {found.by_stress}"
        if _has_second_derivatives(model):
            exact = without_steps(model, crystal(name, CRYSTALS[name], found.volume))
            line += f", second derivatives {exact}"
            if not found.by_energy.agrees(exact):
                rough.append(name)
        table.append(line)
        if not (found.by_energy.is_stable and found.by_stress.is_stable):
            unstable.append(name)
        if not found.by_stress.agrees(found.by_energy):
            apart.append(name)

    figures = [Figure("cubic crystals", len(judged), "")]
    lines = []
    if judged:
        questions = [
            ("crystals without a minimum", without),
            ("unstable crystals", unstable),
            ("crystals whose stress is not the derivative of the energy", apart),
        ]
        if _has_second_derivatives(model):
            questions.append(("crystals whose strains are not the second derivatives", rough))
        for what, names in questions:
            figure, named = failures(what, names)
            figures.append(figure)
            lines += named
    return CheckResult(figures, lines + table, skipped)


def _has_second_derivatives(model: CheckedModel | CheckedCalculator) -> TypeGuard[CheckedModel]:
    """Whether the subject is a model whose energy comes from the network alone."""
    if not isinstance(model, CheckedModel):
        return False
    config = model.loaded.potential.config
    return config.physics is None and not config.charges


def crystal_symbols(name: str) -> list[str]:
    """Symbols of the elements in a formula, sorted."""
    return sorted(set(Atoms(name).get_chemical_symbols()))


def elastic_constants(calculator: Calculator, name: str, structure: str) -> Strained | None:
    """Elastic constants by energy and by stress; None if there is no minimum near the known volume.

    name: formula. structure: ASE's name, such as "fcc".
    """
    curve = minimum(calculator, name, structure, expected_volume(name, structure))
    if not curve.volume > 0:
        return None
    atoms = crystal(name, structure, curve.volume)
    relaxes = structure in HAS_INNER_STRAIN

    # second derivatives of the energy per volume, and derivatives of the stress, in GPa
    uniaxial, along, across = _response(calculator, atoms, UNIAXIAL, (0, 0), (1, 1))
    isotropic, _, _ = _response(calculator, atoms, ISOTROPIC, (0, 0), (1, 1))
    sheared, shear, _ = _response(calculator, atoms, SHEAR, (1, 2), (0, 1), relaxes=relaxes)

    # the isotropic response is 3 (C11 + 2 C12)
    c12 = (isotropic / 3 - uniaxial) / 2
    return Strained(
        Constants(uniaxial, c12, sheared), Constants(along, across, shear), curve.volume
    )


def without_steps(model: CheckedModel, atoms: Atoms) -> Constants:
    """Elastic constants as second derivatives of a model's energy, with relaxation of the atoms."""
    # imported here, because they import torch, which the help of the command does not need
    import torch

    from ...data_pipelines.batch import Batch
    from ...data_pipelines.structure import Structure
    from ...model_zoo.engines.calculator import moved
    from ...model_zoo.potential.second_derivatives import elastic_tensor

    potential = moved(model.loaded.potential, "cpu", "float64")
    structure = Structure.from_atoms(atoms, model.level, "crystal")
    config = potential.config
    batch = Batch.from_structure(structure, config.cutoff, config.levels_of_theory, torch.float64)
    tensor = elastic_tensor(potential, batch).numpy() / GPa
    return Constants(float(tensor[0, 0]), float(tensor[0, 1]), float(tensor[3, 3]))


def expected_volume(name: str, structure: str) -> float:
    """Expected volume in A^3/atom, from the reference tables."""
    for lattice in lattices():
        if lattice.name == name:
            return lattice.pbe**3 / ATOMS_PER_CUBE[structure]
    return elemental_phases()[name][structure].volume


def _response(
    calculator: Calculator,
    atoms: Atoms,
    direction: np.ndarray,
    first: tuple[int, int],
    second: tuple[int, int],
    *,
    relaxes: bool = False,
) -> tuple[float, float, float]:
    """d2E/de2 / V, and the derivatives of the stress entries `first` and `second`, in GPa.

    direction: (3, 3) unit strain, which is multiplied by STRAINS. relaxes: whether the atoms are
    relaxed at each strain.
    """
    energies = []
    stresses = []
    for strain in STRAINS:
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ (np.eye(3) + strain * direction), scale_atoms=True)
        if relaxes:
            relaxed = at_rest(calculator, strained, FMAX, MAX_STEPS)
            # if the relaxation failed, the call below fails as well and gives NaN
            strained = strained if relaxed is None else relaxed[0]
        answer = ask(calculator, strained, stress=True)
        energies.append(answer.energy)
        stresses.append(answer.stress)

    if not np.isfinite(energies).all():
        return np.nan, np.nan, np.nan
    # in units of the largest strain, so that the powers in the fit have similar magnitudes
    largest = STRAINS.max()
    scaled = STRAINS / largest
    relative = np.array(energies) - energies[len(STRAINS) // 2]
    curvature = 2 * np.polyfit(scaled, relative, 4)[-3] / largest**2 / atoms.get_volume()

    slopes = []
    for row, column in (first, second):
        entries = [stress[row, column] for stress in stresses]
        is_finite = bool(np.isfinite(entries).all())
        slope = np.polyfit(scaled, entries, 3)[-2] / largest if is_finite else np.nan
        slopes.append(float(slope) / GPa)
    return float(curvature) / GPa, slopes[0], slopes[1]
