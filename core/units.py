"""Units that a source may state, as factors to the pipeline's own: A, eV, eV/A, eV/A^3."""

from __future__ import annotations

from ase import units


ENERGY = {"eV": 1.0, "meV": 1e-3, "Hartree": units.Hartree, "Ry": units.Rydberg}
ENERGY |= {"kcal/mol": units.kcal / units.mol, "kJ/mol": units.kJ / units.mol}
LENGTH = {"A": 1.0, "Bohr": units.Bohr, "nm": 10.0}
FORCES = {f"{e}/{r}": ENERGY[e] / LENGTH[r] for e in ENERGY for r in LENGTH}
FORCES |= {f"-{name}": -factor for name, factor in FORCES.items()}  # files that hold the gradient
# VASP and others print the pressure's sign; ASE's stress is its negative. Both are common in files.
STRESS = {
    "eV/A^3": 1.0,
    "GPa": units.GPa,
    "kbar": 0.1 * units.GPa,
    "Hartree/Bohr^3": units.Hartree / units.Bohr**3,
}
STRESS |= {f"-{name}": -factor for name, factor in STRESS.items()}

FACTORS = {"energy": ENERGY, "forces": FORCES, "stress": STRESS}


def unit_factor(field: str, unit: str) -> float:
    """Factor that takes `field` from `unit` to the pipeline's unit; ValueError names the units that are known."""
    known = FACTORS[field]
    if unit not in known:
        raise ValueError(f"units.{field}='{unit}' is not known: use one of {', '.join(known)}")
    return known[unit]
