"""Thirty-one questions of physics with the answer yes or no, for any calculator of ASE.

They are what a user would try first. `evenfield check sanity` asks more, and more strictly; its
functions do the work here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS

from evenfield.diagnostics.check import CheckedCalculator, check_function
from evenfield.diagnostics.checks.dynamics import DRIFT, simulate
from evenfield.diagnostics.checks.elastic import CRYSTALS, crystal_symbols, elastic_constants
from evenfield.diagnostics.sanity.answers import FAILURES
from evenfield.diagnostics.sanity.config import SanityConfig
from evenfield.diagnostics.sanity.crystals import ATOMS_PER_CUBE, lattice_parameter, minimum
from evenfield.diagnostics.sanity.memory import Memory
from evenfield.diagnostics.sanity.reference.tables import diatomics, lattices
from evenfield.diagnostics.sanity.systems import SYSTEMS, PairDistances, System


LATTICES = ["C", "Si", "Ge", "SiC", "GaAs", "MgO", "LiF", "LiCl", "NaCl", "Na", "Al", "Cu", "Ag"]
LATTICE_ERROR = 0.03  # of PBE
SHEARED = ["Cu", "Al", "Na", "W", "Si", "C", "MgO"]
DIATOMICS = ["H2", "N2", "O2", "CO", "HF"]
BOND_ERROR = 0.05  # of experiment
DYNAMICS = ("Cu", "NaCl", "water, 8 molecules")
PICOSECONDS = 0.2  # at least; a check of dynamics has 400 steps or more
ADSORBED = "CO on Cu(111)"
CARBON_OXYGEN = (1.08, 1.25)  # A, of the adsorbed molecule
CARBON_COPPER = (1.70, 2.20)  # A
FMAX = 0.05  # eV/A
MAX_STEPS = 200

# Name -> a word about the failure, empty for a pass; None for an element that is not known.
Verdicts = dict[str, str | None]


Question = Callable[[], str]


def simple_checks(model: CheckedCalculator, done: Verdicts) -> Iterator[tuple[str, str | None]]:
    """Ask all that `done` does not have, one after the other."""
    known = set(model.symbols)
    for name, (symbols, question) in _questions(model).items():
        if name not in done:
            yield name, question() if symbols <= known else None


def _questions(model: CheckedCalculator) -> dict[str, tuple[set[str], Question]]:
    """Name -> the elements that must be known, and what answers."""
    calculator = model.calculator("float64")
    found: dict[str, tuple[set[str], Question]] = {}
    for name in LATTICES:
        found[f"lattice {name}"] = _elements(name), partial(_lattice, calculator, name)
    for name in SHEARED:
        found[f"shear {name}"] = _elements(name), partial(_shear, calculator, name)
    for name in DIATOMICS:
        found[f"molecule {name}"] = _elements(name), partial(_bond, calculator, name)
    found["water dimer"] = {"H", "O"}, partial(_sanity_check, "water", model)
    found[ADSORBED] = {"C", "O", "Cu"}, partial(_adsorbed, calculator)
    found["repulsion of all pairs"] = set(), partial(_sanity_check, "repulsion", model)
    for name in DYNAMICS:
        system = _system(name)
        elements = set(system.atoms().get_chemical_symbols())
        found[f"dynamics {name}"] = elements, partial(_dynamics, model, system)
    return found


def _elements(formula: str) -> set[str]:
    return set(crystal_symbols(formula))


def _system(name: str) -> System:
    return next(system for system in SYSTEMS if system.name == name)


def _lattice(calculator: Calculator, name: str) -> str:
    lattice = next(each for each in lattices() if each.name == name)
    volume = lattice.pbe**3 / ATOMS_PER_CUBE[lattice.structure]
    found = minimum(calculator, name, lattice.structure, volume).volume
    if not found > 0:
        return "no minimum"
    error = lattice_parameter(lattice.structure, found) / lattice.pbe - 1
    return "" if abs(error) <= LATTICE_ERROR else f"{100 * error:+.1f} %"


def _shear(calculator: Calculator, name: str) -> str:
    found = elastic_constants(calculator, name, CRYSTALS[name])
    if found is None:
        return "no minimum"
    # by stress, as users take them; `evenfield check elastic` says whether the energy agrees
    constants = found.by_stress
    tetragonal = (constants.c11 - constants.c12) / 2
    is_positive = tetragonal > 0 and constants.c44 > 0
    return "" if is_positive else f"C' {tetragonal:.1f}, C44 {constants.c44:.1f} GPa"


def _bond(calculator: Calculator, name: str) -> str:
    molecule = next(each for each in diatomics() if each.name == name)
    start = [[0, 0, 0], [1.05 * molecule.length, 0, 0]]
    atoms = _relaxed(calculator, Atoms([molecule.first, molecule.second], start), 0.01)
    if atoms is None:
        return "not relaxed"
    length = float(atoms.get_distance(0, 1))
    is_right = abs(length / molecule.length - 1) <= BOND_ERROR
    return "" if is_right else f"{length:.2f} A"


def _adsorbed(calculator: Calculator) -> str:
    """The molecule stands on the metal by its carbon, and is still one."""
    start = _system(ADSORBED).atoms()
    atoms = _relaxed(calculator, start, FMAX)
    if atoms is None:
        return "not relaxed"
    carbon = atoms.get_chemical_symbols().index("C")
    oxygen = atoms.get_chemical_symbols().index("O")
    metal = [index for index, symbol in enumerate(atoms.symbols) if symbol == "Cu"]
    bond = float(atoms.get_distance(carbon, oxygen, mic=True))
    height = float(atoms.get_distances(carbon, metal, mic=True).min())
    stands = atoms.positions[oxygen, 2] > atoms.positions[carbon, 2]
    is_molecule = CARBON_OXYGEN[0] <= bond <= CARBON_OXYGEN[1]
    is_bound = CARBON_COPPER[0] <= height <= CARBON_COPPER[1]
    fused = PairDistances(start).fused(atoms)
    if stands and is_molecule and is_bound and fused is None:
        return ""
    return f"C-O {bond:.2f}, C-Cu {height:.2f} A"


def _relaxed(calculator: Calculator, atoms: Atoms, fmax: float) -> Atoms | None:
    """The atoms at rest; None where the calculator fails or the steps do not suffice."""
    atoms.calc = calculator
    try:
        with np.errstate(all="ignore"):
            has_converged = BFGS(atoms, logfile=None).run(fmax=fmax, steps=MAX_STEPS)
    except FAILURES:
        return None
    return atoms if has_converged else None


def _sanity_check(name: str, model: CheckedCalculator) -> str:
    """One of the checks of `evenfield check`, which names what failed."""
    result = check_function(name)(model, SanityConfig(suite="quick"))
    return ", ".join(f"{f.name} {f.value:.3g}" for f in result.figures if not f.passed)


def _dynamics(model: CheckedCalculator, system: System) -> str:
    settings = SanityConfig(picoseconds=PICOSECONDS)
    run = simulate(model.calculator(), system, settings, Memory(None))
    if run.failure:
        return run.failure
    return "" if abs(run.drift) <= DRIFT else f"{run.drift:+.0f} meV/atom/ps"
