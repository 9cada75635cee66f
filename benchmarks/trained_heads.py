"""Heads with a network of their own, beside heads on the frozen features of evenfield-1.

    python benchmarks/trained_heads.py WORK [--cases NAME ...] [--steps 12000]

Molecules of `property_heads.py`, more of them, labelled by GFN1-xTB: dipoles, and polarizabilities
from dipoles in fields. A fifth is held out by composition. Each case fits the same head twice, on
the frozen network and with one that is trained on the labels:

- dipole-N: of N molecules, with a part at each atom beside the charges.
- charges-N: dipoles as those of charges alone; the charges are compared with those of xTB, which
  no fit saw.
- polarizability-N.

Length and rate of the training were chosen on what a training leaves out for itself, never on what
is held out. One split each. Labels stand in WORK and are made once: 24,000 dipoles in four minutes,
6,000 polarizabilities in ten. A case takes minutes to an hour. Adds to results/trained_heads.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from property_heads import configured, drawn, quiet
from turning_heads import polarizability

from evenfield import model_zoo
from evenfield.data_pipelines.demo.oracles import GFN1_LEVEL, RejectedStructure, label
from evenfield.finetune.property_heads.figures import flat, number_figures
from evenfield.finetune.property_heads.fit import fit_head
from evenfield.finetune.property_heads.split import held_out
from evenfield.model_zoo.heads.features import carried_features, in_place_of
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.hub.load import LoadedModel


RESULT = Path(__file__).parent / "results" / "trained_heads.json"
CASES = (
    "dipole-1200",
    "dipole-6000",
    "dipole-24000",
    "charges-6000",
    "charges-24000",
    "polarizability-6000",
)
# molecules between two lines of progress
CHUNK = 2000
WORDS = {
    "dipole": ["head=dipole", "features=equivariant"],
    "charges": ["head=dipole"],
    "polarizability": ["head=polarizability", "key=alpha", "unit=e*A^2/V"],
}


def molecules(work: Path, count: int, *, tensors: bool) -> list[Atoms]:
    """The first `count` molecules that have labels, from the files of WORK as far as they go."""
    name = "polarizabilities" if tensors else "dipoles"
    work.mkdir(parents=True, exist_ok=True)
    frames: list[Atoms] = []
    chunk = 0
    while len(frames) < count:
        path = work / f"{name}-{chunk:03d}.traj"
        if not path.is_file():
            unfinished = path.with_suffix(".part")
            ase.io.write(unfinished, _labelled(chunk, tensors=tensors), format="traj")
            unfinished.rename(path)
            print(f"{path}", flush=True)
        frames += ase.io.read(path, ":")
        chunk += 1
    return frames[:count]


def _labelled(chunk: int, *, tensors: bool) -> list[Atoms]:
    """Those of CHUNK seeds that are molecules with a closed shell and converge."""
    frames = []
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        atoms = drawn(seed)
        if atoms is None:
            continue
        try:
            atoms = label(atoms, GFN1_LEVEL)
        except (RejectedStructure, RuntimeError):
            continue
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
        if tensors:
            tensor = polarizability(atoms)
            if tensor is None:
                continue
            atoms.info["alpha"] = tensor
        frames.append(atoms)
    return frames


def figures(model: LoadedModel, head: Head, frames: list[Atoms], words: list[str]) -> Any:
    """Errors of a head on what was held out, and of the charges in a dipole of charges."""
    errors = head.description.errors
    found = {
        "mae_over_spread": errors["mae"] / errors["spread"],
        "rmse_over_spread": errors["rmse"] / errors["spread"],
        "r": errors["r"],
    }
    if "relative" in errors:
        found["relative"] = errors["relative"]
    if head.has_charges:
        mask = held_out(frames, configured(*words), Path("molecules"))
        test = [atoms for atoms, out in zip(frames, mask, strict=True) if out]
        potential = in_place_of(model.potential, head.own)
        features = carried_features(potential, test, head.description.features)
        charges = []
        for own, atoms in zip(features, test, strict=True):
            charges.append(head.charges(own.invariants.double().numpy(), atoms))
        known = flat([atoms.calc.results["charges"] for atoms in test])
        found["charge_r"] = number_figures(flat(charges), known)["r"]
    return {name: round(value, 4) for name, value in found.items()}


def case(model: LoadedModel, work: Path, name: str, steps: int) -> dict[str, Any]:
    """Figures of one case, frozen and trained."""
    kind, count = name.split("-")
    frames = molecules(work, int(count), tensors=kind == "polarizability")
    path = work / f"{name}.traj"
    ase.io.write(path, frames)
    result: dict[str, Any] = {}
    for way in ("frozen", "trained"):
        words = list(WORDS[kind])
        if way == "trained":
            words += ["network=trained", f"training.max_steps={steps}"]
        began = time.process_time()
        head = fit_head(model, path, configured(*words), say=quiet, quiet=False)
        result[way] = figures(model, head, frames, words)
        result[way]["processor_minutes"] = round((time.process_time() - began) / 60, 1)
        print(name, way, result[way], flush=True)
    about = head.description
    result |= {
        "learned_from": about.num_structures,
        "held_out": about.num_held_out,
        "steps": steps,
        "best_step": about.trained_steps,
    }
    return result


def main() -> None:
    """Add the figures of the cases to the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = model_zoo.load(options.model)
    for name in options.cases:
        found = json.loads(options.out.read_text()) if options.out.is_file() else {}
        found["model"] = model.reference
        found[name] = case(model, options.work, name, options.steps)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
