"""Structures of CIF files, read by ASE, within limits on sites and symmetry operations.

ASE compares the symmetry images of each site with those of all other sites, pair by pair. A file of
100 kB, with thousands of sites in a space group of 192 operations, kept it busy for many minutes.
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


# number of operations in the largest space groups
MOST_OPERATIONS = 192
# Limits for a file with symmetry. ASE's time grows with the square of the number of sites (nine
# seconds for 1,000), and with the number of symmetry images (eight seconds for 98,000).
MOST_SITES = 700
MOST_IMAGES = 60_000
# ASE's tolerance, in scaled coordinates, within which sites are merged
SAME_PLACE = 1e-3
WITHOUT_SYMMETRY = "write the structure with all its atoms, as extended xyz or without symmetry"


def cif_frames(path: Path) -> Iterator[Atoms]:
    """Yield the structures of a CIF file, in order.

    Raises SourceError for a structure that exceeds the limits or has two elements at one place,
    and ASE's own errors for a file that ASE cannot read.
    """
    with open_with_compression(str(path), "rb") as file:
        for block in parse_cif(file):
            if block.has_structure():
                yield _atoms_of(block)


def _atoms_of(block: CIFBlock) -> Atoms:
    if block.get_cell().rank != 3:
        # without a full cell, ASE applies no symmetry operations
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
    """Let ASE read a block and apply its symmetry.

    Raises SourceError if two elements are at one place, because ASE would silently keep only one of
    them. Partially occupied sites may share a place; they pass here and are refused later, by
    their occupancies.
    """
    with warnings.catch_warnings():
        # ASE's warning names neither the file nor the elements
        warnings.filterwarnings("ignore", "scaled_positions .* are equivalent")
        atoms = block.get_atoms()
    sites = block.get_unsymmetrized_structure()
    occupancies = block.get("_atom_site_occupancy") or [1.0] * len(sites)
    # twice, because the first modulo turns a tiny negative number into 1.0
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
    """An occupancy as ASE reads it; 1 if it is not a number, such as `?`."""
    return float(occupancy) if isinstance(occupancy, int | float) else 1.0


def _without_symmetry(block: CIFBlock) -> Atoms | None:
    """Read a block without symmetry, faster than ASE does; None if two sites share a place."""
    atoms = block.get_unsymmetrized_structure()
    atoms.pbc = True
    # twice, because the first modulo turns a tiny negative number into 1.0
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
