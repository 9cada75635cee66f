"""Coupled states of LiF through its avoided crossing, beside SA-CASSCF of PySCF.

    pip install pyscf
    python benchmarks/coupled_states.py [--model evenfield-1] [--seeds 0 1 2]

The lowest two singlets of LiF at SA-CASSCF(2,2)/6-31G*, averaged with equal weights: ionic at
short and covalent at long distances, with an avoided crossing at 3.2 A. A head learns from the ends
and 78 random distances between 1.35 and 4.6 A: beyond, the atoms leave the cutoff of evenfield-1,
5 A. The path that it is judged on has 60 distances of a grid from 1.45 to 4.5 A; those within
0.005 A of a training distance are left out.

- Energies: largest and mean absolute error of both states on the path.
- Couplings: derivative couplings of the head against finite differences of its own states, and
  against those of PySCF (`pyscf.nac.sacasscf`) on every fourth distance.
- Couplings as labels: a second head learns the couplings of PySCF at every second distance as well,
  and is judged in the same way.
- Control: two heads of the kind `scalar`, one for each energy.

Minutes. Writes results/coupled_states.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.finetune.property_heads.config import HeadConfig
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.save import save_head
from evenfield.model_zoo.hub.load import LoadedModel


RESULT = Path(__file__).parent / "results" / "coupled_states.json"
SHORTEST = 1.35
LONGEST = 4.6
LEARNED = 80
ON_PATH = 60
TOO_CLOSE = 0.005
STEP = 1e-4


def quiet(text: str) -> None:
    """Say nothing."""


def molecule(distance: float) -> Atoms:
    """LiF along z."""
    return Atoms("LiF", [[0, 0, 0], [0, 0, distance]])


class Casscf:
    """Energies of both states, each calculation starting from the orbitals of the one before."""

    def __init__(self) -> None:
        self.before: Any = None

    def __call__(self, distance: float) -> Any:
        """The converged calculation at a distance in A."""
        from pyscf import gto, mcscf, scf, symm

        structure = f"Li 0 0 0; F 0 0 {distance}"
        mol = gto.M(atom=structure, basis="6-31g*", verbose=0, symmetry="C2v")
        field = scf.RHF(mol).run()
        casscf = mcscf.state_average_(mcscf.CASSCF(field, 2, 2), [0.5, 0.5])
        casscf.fcisolver.wfnsym = "A1"
        casscf.fix_spin_(ss=0)
        if self.before is None:
            labels = symm.label_orb_symm(mol, mol.irrep_name, mol.symm_orb, field.mo_coeff)
            occupied = mol.nelectron // 2
            sigma = [place for place, label in enumerate(labels) if label == "A1"]
            highest = max(place for place in sigma if place < occupied)
            lowest = min(place for place in sigma if place >= occupied)
            orbitals = casscf.sort_mo([highest + 1, lowest + 1])
        else:
            orbitals = mcscf.project_init_guess(casscf, *self.before)
        casscf.kernel(orbitals)
        if not casscf.converged:
            raise RuntimeError(f"no convergence at {distance} A")
        self.before = (casscf.mo_coeff, mol)
        return casscf

    def energies(self, distance: float) -> np.ndarray:
        """(2,) in eV"""
        return np.array(self(distance).e_states) * units.Hartree

    def coupling(self, distance: float) -> np.ndarray:
        """<0|d/dR 1> (2, 3) in 1/A, without the term of electron motion."""
        nac = self(distance).nac_method()
        found: np.ndarray = nac.kernel(state=(0, 1), use_etfs=True) / units.Bohr
        return found


def labelled(distances: np.ndarray) -> list[Atoms]:
    """Structures with the energies of both states, and every second one with their coupling."""
    casscf = Casscf()
    frames = []
    for place, distance in enumerate(np.sort(distances)):
        atoms = molecule(float(distance))
        atoms.info["states"] = casscf.energies(float(distance))
        if place % 2:
            atoms.arrays["nac"] = casscf.coupling(float(distance))
        frames.append(atoms)
    return frames


def fitted(
    model: LoadedModel, frames: list[Atoms], folder: Path, seed: int, *, couplings: bool
) -> LoadedModel:
    """The model with a head of states, which learns couplings too or energies alone."""
    path = folder / f"states{seed}.extxyz"
    ase.io.write(path, frames)
    words = ["head=states", "key=states", "unit=eV", "split=structure", "held_out=0.1"]
    words += ["level_of_theory=SA-CASSCF(2,2)/6-31G*", f"seed={seed}"]
    if couplings:
        words += ["couplings=nac", "couplings_unit=1/A"]
    head = fit_head(model, path, load_settings(HeadConfig, None, words), say=quiet)
    out = folder / f"model{seed}{'-couplings' if couplings else ''}"
    return model_zoo.load(save_head(head, model, "model", out))


def control(model: LoadedModel, frames: list[Atoms], folder: Path) -> list[LoadedModel]:
    """A model with a scalar head for each energy."""
    found = []
    for state in range(2):
        copies = [atoms.copy() for atoms in frames]
        for atoms in copies:
            atoms.info["one"] = float(atoms.info["states"][state])
        path = folder / f"one{state}.extxyz"
        ase.io.write(path, copies)
        words = ["head=scalar", "key=one", "unit=eV", "split=structure", "held_out=0.1"]
        words += ["level_of_theory=SA-CASSCF(2,2)/6-31G*"]
        head = fit_head(model, path, load_settings(HeadConfig, None, words), say=quiet)
        found.append(model_zoo.load(save_head(head, model, "model", folder / f"one{state}")))
    return found


def coupling_by_differences(model: LoadedModel, distance: float) -> tuple[float, float]:
    """<0|d/dR 1> of the head, in closed form and by differences of its states, in 1/A."""
    states = model.states(molecule(distance))
    closed = states.derivative_couplings()[0, 1, 1, 2]
    ends = []
    for sign in (1, -1):
        vectors = model.states(molecule(distance + sign * STEP)).vectors
        # the sign of a state is a choice
        ends.append(vectors[:, 1] * np.sign(vectors[:, 1] @ states.vectors[:, 1]))
    differences = states.vectors[:, 0] @ (ends[0] - ends[1]) / (2 * STEP)
    return float(closed), float(differences)


def in_mev(errors: list[Any]) -> dict[str, float]:
    """Largest and mean absolute error of energies in eV."""
    sizes = 1000 * np.abs(errors)
    return {"largest error, meV": float(sizes.max()), "mean error, meV": float(sizes.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model = model_zoo.load(arguments.model)
    # energies of a molecule of 3,000 eV need all digits
    model.potential.double()

    path = np.linspace(SHORTEST + 0.1, LONGEST - 0.1, ON_PATH)
    judged = labelled(path)
    gaps = [np.diff(atoms.info["states"])[0] for atoms in judged]
    found: dict[str, Any] = {
        "model": model.reference,
        "crossing": {"distance": float(path[int(np.argmin(gaps))]), "gap": float(min(gaps))},
    }
    reference = Casscf()
    of_pyscf = np.array([abs(reference.coupling(float(d))[1, 2]) for d in path[::4]])

    for seed in arguments.seeds:
        rng = np.random.default_rng(seed)
        drawn = rng.uniform(SHORTEST, LONGEST, LEARNED - 2)
        learned = np.concatenate([[SHORTEST, LONGEST], drawn])
        frames = labelled(learned)
        apart = [np.abs(learned - distance).min() > TOO_CLOSE for distance in path]
        test = [atoms for atoms, own in zip(judged, apart, strict=True) if own]
        rows: dict[str, Any] = {"distances": len(test), "coupling of PySCF": float(of_pyscf.mean())}
        with TemporaryDirectory() as name:
            scalars = control(model, frames, Path(name))
            of_control = [
                [one.predict(a, "one") - a.info["states"][k] for k, one in enumerate(scalars)]
                for a in test
            ]
            rows["two scalar heads"] = in_mev(of_control)
            for arm in ("energies alone", "with couplings"):
                own = fitted(model, frames, Path(name), seed, couplings=arm == "with couplings")
                errors = [own.states(a).energies - a.info["states"] for a in test]
                pairs = [coupling_by_differences(own, distance) for distance in path[::4]]
                closed = np.array([abs(pair[0]) for pair in pairs])
                rows[arm] = in_mev(errors) | {
                    "coupling: largest deviation from differences, 1/A": float(
                        max(abs(first - second) for first, second in pairs)
                    ),
                    "coupling: mean deviation from PySCF, 1/A": float(
                        np.abs(closed - of_pyscf).mean()
                    ),
                }
        found[f"seed {seed}"] = rows
        print(seed, json.dumps(rows, indent=1), flush=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
