"""Structures of CIF files, read by ASE, within limits that follow from what a file announces.

ASE compares the images of each site with those of all others, one pair after the other. A file of
100 kB with thousands of sites in a group of 192 operations kept it busy for many minutes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io.cif import CIFBlock, parse_cif
from ase.io.formats import open_with_compression
from scipy.spatial import cKDTree

from .locations import SourceError


# of the largest space groups
MOST_OPERATIONS = 192
# Of a file with symmetry: ASE's time grows with the square of the sites (nine seconds for 1,000)
# and with the images of all of them (eight for 98,000).
MOST_SITES = 700
MOST_IMAGES = 60_000
# ASE's, of scaled coordinates: nearer sites are one
SAME_PLACE = 1e-3
WITHOUT_SYMMETRY = "write the structure with all its atoms, as extended xyz or without symmetry"


def cif_frames(path: Path) -> Iterator[Atoms]:
    """The structures of a CIF file, in order. Raises SourceError for one that would take hours.

    Raises what ASE raises for a file that it cannot read.
    """
    with open_with_compression(str(path), "rb") as file:
        for block in parse_cif(file):
            if block.has_structure():
                yield _atoms_of(block)


def _atoms_of(block: CIFBlock) -> Atoms:
    if block.get_cell().rank != 3:
        # ASE applies no operations
        return block.get_atoms()
    listed = len(block._get_sitesym() or [])
    if listed > MOST_OPERATIONS:
        raise SourceError(
            f"lists {listed} symmetry operations; a space group has at most {MOST_OPERATIONS}",
            remedy=WITHOUT_SYMMETRY,
        )
    num_sites = len(block.get_symbols())
    num_operations = len(block.get_spacegroup(subtrans_included=True).get_symop())
    if num_operations == 1:
        atoms = _without_symmetry(block)
        if atoms is not None:
            return atoms
    if num_sites > MOST_SITES or num_sites * num_operations > MOST_IMAGES:
        operations = f"{num_operations} operations"
        if num_operations == 1:
            operations = "several sites at one place"
        raise SourceError(
            f"has {num_sites} sites with {operations}; up to {MOST_SITES} sites, and "
            f"{MOST_IMAGES:,} images of them, are read",
            remedy=WITHOUT_SYMMETRY,
        )
    return _with_symmetry(block)


def _with_symmetry(block: CIFBlock) -> Atoms:
    """What ASE makes of a block. Raises SourceError where two elements are at one place.

    ASE keeps one of them. Sites that are occupied in part share places rightly; readers refuse
    them by their occupancies, which ASE keeps.
    """
    with warnings.catch_warnings():
        # names neither the file nor the elements
        warnings.filterwarnings("ignore", "scaled_positions .* are equivalent")
        atoms = block.get_atoms()
    sites = block.get_unsymmetrized_structure()
    occupancies = block.get("_atom_site_occupancy") or [1.0] * len(sites)
    # a small negative number becomes 1 first
    places = cKDTree(atoms.get_scaled_positions() % 1.0 % 1.0, boxsize=1.0)
    distances, found = places.query(sites.get_scaled_positions() % 1.0 % 1.0, p=np.inf)
    for site, (distance, atom) in enumerate(zip(distances, found, strict=True)):
        one = sites.symbols[site]
        other = atoms.symbols[atom]
        is_whole = _number_of(occupancies[site]) >= 1.0
        if distance < SAME_PLACE and one != other and is_whole:
            raise SourceError(
                f"has {one} and {other} at one place", remedy="give each place one element"
            )
    return atoms


def _number_of(occupancy: object) -> float:
    """An occupancy as ASE reads it; 1 where it is no number, such as `?`."""
    return float(occupancy) if isinstance(occupancy, int | float) else 1.0


def _without_symmetry(block: CIFBlock) -> Atoms | None:
    """What ASE makes of a block without symmetry, in no time; None where sites share a place."""
    atoms = block.get_unsymmetrized_structure()
    atoms.pbc = True
    # a small negative number becomes 1 first
    scaled = atoms.get_scaled_positions() % 1.0 % 1.0
    if len(atoms) > 1:
        places = cKDTree(scaled, boxsize=1.0)
        distances, _ = places.query(scaled, k=2, p=np.inf)
        if distances[:, 1].min() < SAME_PLACE:
            return None

    atoms.set_scaled_positions(scaled)
    occupancies = block.get("_atom_site_occupancy")
    if occupancies is not None:
        sites = zip(atoms.symbols, occupancies, strict=True)
        atoms.info["occupancy"] = {
            str(index): {symbol: share} for index, (symbol, share) in enumerate(sites)
        }
    return atoms
