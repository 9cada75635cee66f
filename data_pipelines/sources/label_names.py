"""Guess from a column's name and shape whether it contains a label.

No label is read by its name alone, because a name does not define a unit. But the user should hear
about a column that looks like a label and is not read. Otherwise a model might be trained without
forces unnoticed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ...core.labels import LABELS


# What a column named like a label contains: the label itself; one component of it; the contribution
# of each atom, or the value per atom; or a difference from other structures, such as free atoms.
Form = Literal["label", "component", "per atom", "relative"]

# what the user must provide instead of a column that no setting can turn into a label
INSTEAD: dict[Form, str] = {
    "component": "one column with all components, such as forces (N, 3) or stress (3, 3)",
    "per atom": "a column for the whole structure",
    "relative": "the total energy",
}
# how reports mark a per-atom column whose name does not say that it is one
PER_ATOM = "{} (per atom)"

# splits REF_energy, TotEnergy, totalEnergy and dft-energy
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# word -> label and the unit that such a column usually has
LABEL_WORDS = {
    "energy": ("energy", "eV"),
    "energies": ("energy", "eV"),
    "toten": ("energy", "eV"),
    "etot": ("energy", "eV"),
    "force": ("forces", "eV/A"),
    "forces": ("forces", "eV/A"),
    "feynman": ("forces", "eV/A"),
    # the gradient of the energy is minus the force
    "grad": ("forces", "-eV/A"),
    "gradient": ("forces", "-eV/A"),
    "gradients": ("forces", "-eV/A"),
    "stress": ("stress", "eV/A^3"),
    "stresses": ("stress", "eV/A^3"),
    "virial": ("stress", "-eV"),
    "virials": ("stress", "-eV"),
    "vir": ("stress", "-eV"),
    "frc": ("forces", "eV/A"),
    "frcs": ("forces", "eV/A"),
    "sigma": ("stress", "eV/A^3"),
    "pressure": ("stress", "-eV/A^3"),
}
# names that are too short to be split into words: (label, unit); U0 is a column of QM9
ABBREVIATIONS = {
    "E": ("energy", "eV"),
    "E0": ("energy", "eV"),
    "U0": ("energy", "Hartree"),
    "e_fr_energy": ("energy", "eV"),
    "e_wo_entrp": ("energy", "eV"),
    "e_0_energy": ("energy", "eV"),
    "F": ("forces", "eV/A"),
}
# a separate column for one component: fx, force_y, stress_xx, sxy
COMPONENT = re.compile(r"(?:f|forces?)[_-]?[xyz]|(?:s|stress|virials?)[_-]?[xyz]{2}", re.IGNORECASE)

# a column with one of these words is related to a label, or part of one, but is not a label itself
_OTHER_WORDS = (
    "above band correction cutoff delta dispersion err error fermi gap has homo hull ionic is "
    "kinetic lumo mae mask max min norm nuclear repulsion rms rmse shift std stdev threshold unc "
    "uncertainty unit units valid var variance weight weights zpe"
)
OTHER_WORDS = frozenset(_OTHER_WORDS.split())
# an energy with one of these words is a difference from the energies of other structures
_RELATIVE_WORDS = "adsorption atomization binding bond cohesive formation ionization"
RELATIVE_WORDS = frozenset(_RELATIVE_WORDS.split())
PER_ATOM_WORDS = frozenset(["atom", "atoms", "atomic", "peratom"])
# a name with only these words and the label's own word means the label itself; with other words it
# may be a model's prediction
_SAME_WORDS = "ref reference dft qm tot total true target label"
SAME_WORDS = frozenset(_SAME_WORDS.split())

# programs that may have computed a column
_PROGRAM_WORDS = (
    "abinit aims castep cp2k dftb emt espresso gaussian gpaw orca psi4 pyscf qe quantumespresso "
    "siesta vasp xtb"
)
_AROUND = "|".join(sorted([*SAME_WORDS, *_PROGRAM_WORDS.split()], key=len, reverse=True))
# E_dft, dft_F, Fvasp: one letter for the label, and words for its origin
LETTER = re.compile(
    rf"(?:(?:{_AROUND})[_-]?)*(?P<letter>[efs])(?:[_-]?(?:{_AROUND}))*", re.IGNORECASE
)
LABEL_LETTERS = {"e": "energy", "f": "forces", "s": "stress"}

# separates the words of energy_Ha, forces_kcal_mol and stress_kbar, some of which are units
NOT_LETTERS = re.compile("[^a-z]+")
ENERGY_UNIT_WORDS = {
    "ev": "eV",
    "mev": "meV",
    "ha": "Hartree",
    "hartree": "Hartree",
    "hartrees": "Hartree",
    "ry": "Ry",
    "rydberg": "Ry",
    "kcal": "kcal/mol",
    "kcalmol": "kcal/mol",
    "kj": "kJ/mol",
    "kjmol": "kJ/mol",
}
LENGTH_UNIT_WORDS = {"bohr": "Bohr", "au": "Bohr", "nm": "nm", "a": "A", "ang": "A"}
STRESS_UNIT_WORDS = {"gpa": "GPa", "kbar": "kbar"}

# MACE's names for training labels, with the units that MACE defines for them
REFERENCE_COLUMNS = {
    "energy": {"REF_energy": "eV"},
    "forces": {"REF_forces": "eV/A"},
    "stress": {"REF_stress": "eV/A^3", "REF_virials": "-eV", "REF_virial": "-eV"},
}
# column for the level of theory in files with these labels
REFERENCE_LEVEL = "level_group"


@dataclass(frozen=True)
class LookAlike:
    """A column whose name looks like a label."""

    column: str
    label: str
    unit: str
    """The unit that the name states, or the unit that such columns usually have."""
    is_same: bool
    """True if the name means the label itself, not a model's prediction or a part of the label."""
    form: Form = "label"

    @property
    def instead(self) -> str | None:
        """What the user must provide instead; None if a setting can make the column be read."""
        return INSTEAD.get(self.form)


@lru_cache(maxsize=4096)
def look_alike(column: str) -> LookAlike | None:
    """What a column's name suggests; None if it does not look like a label."""
    if column in ABBREVIATIONS:
        label, unit = ABBREVIATIONS[column]
        # too short to be sure, so it is not compared with the label
        return LookAlike(column, label, unit, False)
    if COMPONENT.fullmatch(column):
        label = "forces" if column[0] in "fF" else "stress"
        return LookAlike(column, label, LABELS[label].unit, False, "component")
    lettered = LETTER.fullmatch(column)
    if lettered:
        label = LABEL_LETTERS[lettered["letter"].lower()]
        return LookAlike(column, label, _stated_unit(column, label, LABELS[label].unit), False)
    words = [word.lower() for word in WORD.findall(column)]
    if OTHER_WORDS.intersection(words):
        return None
    # the last matching word counts: `energy_model_forces` are forces
    for place in reversed(range(len(words))):
        if words[place] in LABEL_WORDS:
            label, usual_unit = LABEL_WORDS[words[place]]
            others = {*words[:place], *words[place + 1 :]}
            form = _form_of(label, others)
            unit = _stated_unit(column, label, usual_unit)
            # a virial differs from a stress in sign and unit, so they are not compared
            is_same = others <= SAME_WORDS and usual_unit in LABELS[label].unit_factors
            return LookAlike(column, label, unit, is_same and form == "label", form)
    return None


def _form_of(label: str, others: set[str]) -> Form:
    """What a label's column contains, judged by the other words of its name."""
    # forces are always per atom
    if LABELS[label].per == "structure" and PER_ATOM_WORDS & others:
        return "per atom"
    if label == "energy" and RELATIVE_WORDS & others:
        return "relative"
    return "label"


def _stated_unit(column: str, label: str, usual: str) -> str:
    """The unit that a column's name states, with the sign of `usual`; `usual` if it states none."""
    words = NOT_LETTERS.split(column.lower())
    sign = "-" if usual.startswith("-") else ""
    energies = [ENERGY_UNIT_WORDS[word] for word in words if word in ENERGY_UNIT_WORDS]
    lengths = [LENGTH_UNIT_WORDS[word] for word in words if word in LENGTH_UNIT_WORDS]
    stresses = [STRESS_UNIT_WORDS[word] for word in words if word in STRESS_UNIT_WORDS]
    stated = usual
    if label == "forces" and energies:
        stated = f"{sign}{energies[0]}/{lengths[0] if lengths else 'A'}"
    elif label == "stress" and stresses:
        # virials and pressures have the same sign
        stated = f"{sign}{stresses[0]}"
    elif energies and usual.removeprefix("-") in LABELS["energy"].unit_factors:
        # an energy, or a virial
        stated = f"{sign}{energies[0]}"
    return stated if stated in LABELS[label].known_units else usual


def numbers_of(
    value: Any, seen: LookAlike, num_atoms: int, *, of_atoms: bool
) -> tuple[LookAlike, np.ndarray] | None:
    """The values of a column, and what it contains in view of their shape.

    Returns None if the values are missing, not numeric, or of a shape that the label cannot have.

    seen: what the column's name suggests.
    of_atoms: True for a per-atom column. A per-structure value may be a list with one row per atom
        too.
    """
    label = LABELS[seen.label]
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        # rows of different lengths
        return None
    # texts and booleans are not labels
    if array.dtype.kind not in "fiu":
        return None

    sizes_of_atoms = tuple(num_atoms * size for size in label.sizes(1))
    if seen.form == "component":
        sizes: tuple[int, ...] = (num_atoms if label.per == "atom" else 1,)
    else:
        sizes = label.sizes(num_atoms)
    is_possible = label.per == "atom" or not of_atoms
    if is_possible and array.size in sizes:
        return seen, array
    if label.per == "structure" and array.size in sizes_of_atoms:
        # one value per atom, whatever the name says
        name = seen.column if seen.form == "per atom" else PER_ATOM.format(seen.column)
        return LookAlike(name, seen.label, seen.unit, False, "per atom"), array
    return None
