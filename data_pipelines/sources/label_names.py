"""What a column seems to contain, by its name and shape.

No label is read for its name alone, because a name tells no unit. But a column that looks like a
label and is not read is worth a word: a user who is not told trains without forces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ...core.labels import LABELS


# What a column with the name of a label states: the label itself; one component of it; its share of
# each atom, or of the mean atom; or a difference to other structures, such as free atoms.
Form = Literal["label", "component", "per atom", "relative"]

# what would be read in the place of a column that no setting can turn into its label
INSTEAD: dict[Form, str] = {
    "component": "one column with all components, such as forces (N, 3) or stress (3, 3)",
    "per atom": "a column for the whole structure",
    "relative": "the total energy",
}
# in the place of a name that does not say so, for reports
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
    # the derivative of the energy, against which the force points
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
# Names that are too short to have words: (label, unit). U0 is QM9's.
ABBREVIATIONS = {
    "E": ("energy", "eV"),
    "E0": ("energy", "eV"),
    "U0": ("energy", "Hartree"),
    "e_fr_energy": ("energy", "eV"),
    "e_wo_entrp": ("energy", "eV"),
    "e_0_energy": ("energy", "eV"),
    "F": ("forces", "eV/A"),
}
# a single component, in a column of its own: fx, force_y, stress_xx, sxy
COMPONENT = re.compile(r"(?:f|forces?)[_-]?[xyz]|(?:s|stress|virials?)[_-]?[xyz]{2}", re.IGNORECASE)

# a column with one of these words is about a label, or a part of one, and is none
_OTHER_WORDS = (
    "above band correction cutoff delta dispersion err error fermi gap has homo hull ionic is "
    "kinetic lumo mae mask max min norm nuclear repulsion rms rmse shift std stdev threshold unc "
    "uncertainty unit units valid var variance weight weights zpe"
)
OTHER_WORDS = frozenset(_OTHER_WORDS.split())
# an energy with one of these words is a difference to that of other structures
_RELATIVE_WORDS = "adsorption atomization binding bond cohesive formation ionization"
RELATIVE_WORDS = frozenset(_RELATIVE_WORDS.split())
PER_ATOM_WORDS = frozenset(["atom", "atoms", "atomic", "peratom"])
# a column with no other word than these and the label's states the label itself; another one may
# be the prediction of a model
_SAME_WORDS = "ref reference dft qm tot total true target label"
SAME_WORDS = frozenset(_SAME_WORDS.split())

# programs whose results a column may be
_PROGRAM_WORDS = (
    "abinit aims castep cp2k dftb emt espresso gaussian gpaw orca psi4 pyscf qe quantumespresso "
    "siesta vasp xtb"
)
_AROUND = "|".join(sorted([*SAME_WORDS, *_PROGRAM_WORDS.split()], key=len, reverse=True))
# E_dft, dft_F, Fvasp: a letter, and words that say whose it is
LETTER = re.compile(
    rf"(?:(?:{_AROUND})[_-]?)*(?P<letter>[efs])(?:[_-]?(?:{_AROUND}))*", re.IGNORECASE
)
LABEL_LETTERS = {"e": "energy", "f": "forces", "s": "stress"}

# energy_Ha, forces_kcal_mol and stress_kbar say their units, in words between other characters
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

# MACE's names for the labels to train on, whose units it defines
REFERENCE_COLUMNS = {
    "energy": {"REF_energy": "eV"},
    "forces": {"REF_forces": "eV/A"},
    "stress": {"REF_stress": "eV/A^3", "REF_virials": "-eV", "REF_virial": "-eV"},
}
# what files with these labels call their level of theory
REFERENCE_LEVEL = "level_group"


@dataclass(frozen=True)
class LookAlike:
    """A column that looks like a label."""

    column: str
    label: str
    unit: str
    """The one that its name says, or else the one that such columns usually have."""
    is_same: bool
    """It claims to be the label itself, and not the prediction of a model or a part of it."""
    form: Form = "label"

    @property
    def instead(self) -> str | None:
        """What would be read in its place; None for a column that a setting makes be read."""
        return INSTEAD.get(self.form)


@lru_cache(maxsize=4096)
def look_alike(column: str) -> LookAlike | None:
    """What the name of a column says; None for a name that is not like that of a label."""
    if column in ABBREVIATIONS:
        label, unit = ABBREVIATIONS[column]
        # it may be anything, so a comparison would not mean anything
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
    # the last one counts: the forces of the `energy_model_forces`
    for place in reversed(range(len(words))):
        if words[place] in LABEL_WORDS:
            label, usual_unit = LABEL_WORDS[words[place]]
            others = {*words[:place], *words[place + 1 :]}
            form = _form_of(label, others)
            unit = _stated_unit(column, label, usual_unit)
            # a virial has another sign and unit, so a comparison would not mean anything
            is_same = others <= SAME_WORDS and usual_unit in LABELS[label].unit_factors
            return LookAlike(column, label, unit, is_same and form == "label", form)
    return None


def _form_of(label: str, others: set[str]) -> Form:
    """What a label's column states, by the other words of its name."""
    # forces belong to atoms anyway
    if LABELS[label].per == "structure" and PER_ATOM_WORDS & others:
        return "per atom"
    if label == "energy" and RELATIVE_WORDS & others:
        return "relative"
    return "label"


def _stated_unit(column: str, label: str, usual: str) -> str:
    """The unit that the name of a column says, with the sign of the usual one; else the usual."""
    words = NOT_LETTERS.split(column.lower())
    sign = "-" if usual.startswith("-") else ""
    energies = [ENERGY_UNIT_WORDS[word] for word in words if word in ENERGY_UNIT_WORDS]
    lengths = [LENGTH_UNIT_WORDS[word] for word in words if word in LENGTH_UNIT_WORDS]
    stresses = [STRESS_UNIT_WORDS[word] for word in words if word in STRESS_UNIT_WORDS]
    stated = usual
    if label == "forces" and energies:
        stated = f"{sign}{energies[0]}/{lengths[0] if lengths else 'A'}"
    elif label == "stress" and stresses:
        # the sign of a virial is that of a pressure
        stated = f"{sign}{stresses[0]}"
    elif energies and usual.removeprefix("-") in LABELS["energy"].unit_factors:
        # an energy, or a virial
        stated = f"{sign}{energies[0]}"
    return stated if stated in LABELS[label].known_units else usual


def numbers_of(
    value: Any, seen: LookAlike, num_atoms: int, *, of_atoms: bool
) -> tuple[LookAlike, np.ndarray] | None:
    """What a column states and its numbers; None for one that its shape shows to be no such label.

    of_atoms: it has a row for each atom. A value of the structure may hold one too, as a list.
    """
    label = LABELS[seen.label]
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        # rows of different lengths
        return None
    # not texts, flags and lists of them
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
        # of each atom, whatever the name says
        name = seen.column if seen.form == "per atom" else PER_ATOM.format(seen.column)
        return LookAlike(name, seen.label, seen.unit, False, "per atom"), array
    return None
