"""What a column seems to contain, by its name and shape.

No label is read for its name alone, because a name tells no unit. But a column that looks like a
label and is not read is worth a word: a user who is not told trains without forces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ...core.labels import LABELS


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
    # the derivative of the energy, against which the force points
    "gradient": ("forces", "-eV/A"),
    "gradients": ("forces", "-eV/A"),
    "stress": ("stress", "eV/A^3"),
    "stresses": ("stress", "eV/A^3"),
    "virial": ("stress", "-eV"),
    "virials": ("stress", "-eV"),
}
# a single component, in a column of its own: fx, force_y, stress_xx, sxy
COMPONENT = re.compile(r"(?:f|forces?)[_-]?[xyz]|(?:s|stress|virials?)[_-]?[xyz]{2}", re.IGNORECASE)

# a column with one of these words is about a label, or a part of one, and is none
_OTHER_WORDS = (
    "above adsorption atom atoms band binding bond cohesive correction cutoff delta dispersion "
    "err error fermi formation gap has homo hull ionic ionization is kinetic lumo mae mask max "
    "min norm nuclear per repulsion rms rmse shift std stdev threshold unc uncertainty unit units "
    "valid var variance weight weights zpe"
)
OTHER_WORDS = frozenset(_OTHER_WORDS.split())
# a column with no other word than these and the label's states the label itself; another one may
# be the prediction of a model
_SAME_WORDS = "ref reference dft qm tot total true target label"
SAME_WORDS = frozenset(_SAME_WORDS.split())

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
    """The one that such columns usually have."""
    is_same: bool
    """It claims to be the label itself, and not the prediction of a model or a part of it."""
    is_component: bool = False
    """It is one number of each vector or tensor, which no setting can join."""


@lru_cache(maxsize=4096)
def look_alike(column: str) -> LookAlike | None:
    """What the name of a column says; None for a name that is not like that of a label."""
    if COMPONENT.fullmatch(column):
        label = "forces" if column[0] in "fF" else "stress"
        return LookAlike(column, label, LABELS[label].unit, False, is_component=True)
    words = [word.lower() for word in WORD.findall(column)]
    if OTHER_WORDS.intersection(words):
        return None
    # the last one counts: the forces of the `energy_model_forces`
    for place in reversed(range(len(words))):
        if words[place] in LABEL_WORDS:
            label, unit = LABEL_WORDS[words[place]]
            others = {*words[:place], *words[place + 1 :]}
            # a virial has another sign and unit, so a comparison would not mean anything
            is_same = others <= SAME_WORDS and unit in LABELS[label].unit_factors
            return LookAlike(column, label, unit, is_same)
    return None


def numbers_of(value: Any, seen: LookAlike, num_atoms: int, per: str | None) -> np.ndarray | None:
    """The value of a column as numbers; None for one that its shape shows to be no such label.

    per: only a label of the structure, or of its atoms.
    """
    label = LABELS[seen.label]
    if value is None or (per is not None and label.per != per):
        return None
    array = np.asarray(value)
    sizes = label.sizes(num_atoms)
    if seen.is_component:
        sizes = (num_atoms if label.per == "atom" else 1,)
    # not texts, flags and lists of them
    if array.dtype.kind in "fiu" and array.size in sizes:
        return array
    return None
