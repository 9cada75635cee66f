"""Units that a source may state, with factors to the pipeline's units.

The pipeline's units are A, eV, eV/A, eV/A^3, e and e*A.
"""

from __future__ import annotations

from ase import units


LENGTH = {"A": 1.0, "Bohr": units.Bohr, "nm": 10.0}

ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": units.Hartree,
    "Ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}

# a leading minus means that the file holds the gradient of the energy instead of the forces
FORCES = {
    f"{energy}/{length}": ENERGY[energy] / LENGTH[length] for energy in ENERGY for length in LENGTH
}
FORCES |= {f"-{name}": -factor for name, factor in FORCES.items()}

# A leading minus means that the file has the sign of a pressure, as VASP prints it. ASE's stress
# has the opposite sign. Both are common in files.
STRESS = {
    "eV/A^3": 1.0,
    "GPa": units.GPa,
    "kbar": 0.1 * units.GPa,
    "Hartree/Bohr^3": units.Hartree / units.Bohr**3,
}
STRESS |= {f"-{name}": -factor for name, factor in STRESS.items()}

# A virial is minus the derivative of the energy with respect to strain, that is, minus the stress
# times the volume. So a virial has a leading minus, and the derivative itself does not.
STRESS_TIMES_VOLUME = {**ENERGY, **{f"-{name}": -factor for name, factor in ENERGY.items()}}

CHARGE = {"e": 1.0}

DIPOLE = {"e*A": 1.0, "Debye": units.Debye, "e*Bohr": units.Bohr}

COULOMB = units.Hartree * units.Bohr  # e^2 / (4 pi epsilon_0) in eV*A

# Dipole per field in V/A: e*A/(V/A) equals e^2*A^2/eV, ASE's unit. Polarizability volumes in A^3
# are in Gaussian units, and Bohr^3 is the atomic unit.
POLARIZABILITY = {
    "e*A^2/V": 1.0,
    "A^3": 1.0 / COULOMB,
    "Bohr^3": units.Bohr**3 / COULOMB,
}
