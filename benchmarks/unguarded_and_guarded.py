"""Hot clusters of salts and oxides: a model alone, and in `evenfield learn`.

    python benchmarks/unguarded_and_guarded.py WORK [--model evenfield-1]
        [--cases MgO:3000 NaCl:2500] [--unguarded 5] [--guarded 50] [--out FILE]

A case is a block of 24 ions of the rock salt structure in vacuum, and a temperature (K). First each
is simulated by the model as it is, at its default level of theory, for `--unguarded` picoseconds
under a Langevin thermostat. It has blown up when a number is not finite, when it is ten times too
hot, or when two atoms are closer than half the sum of their covalent radii. Ions that evaporate are
counted, and are no blow-up: real clusters do that as well.

Then `evenfield learn` simulates the first case that has blown up, else the first of all, with
GFN1-xTB as the oracle, at most 40 labels, for `--guarded` picoseconds. The same command goes on
after an interruption.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from benchmark_structures import rock_salt
from scipy.sparse.csgraph import connected_components

from evenfield.core.errors import EvenfieldError
from evenfield.core.thermal import set_thermal_momenta
from evenfield.data_pipelines.enrich.label_oracles import label, new_calculator
from evenfield.model_zoo import load
from evenfield.model_zoo.hub.load import LoadedModel
from evenfield.simulation.learn import store
from evenfield.simulation.learn.config import LearnConfig
from evenfield.simulation.learn.loop import learn


# A, between the two kinds of ions at the start
DISTANCES = {"MgO": 2.1, "CaO": 2.4, "BeO": 1.75, "NaCl": 2.75, "LiF": 2.0}
SHAPE = (2, 3, 4)
TIME_STEP = 2.0  # fs
FRICTION = 0.01  # 1/fs
LOOK = 10  # steps
FUSED = 0.5
HOT = 10.0
GAP = 6.0  # A
# structures of the guarded run that the oracle judges in the end
JUDGED = 20


def block(name: str) -> Atoms:
    """24 ions on the sites of rock salt, without a cell."""
    return rock_salt(name, DISTANCES[name], SHAPE)


def unguarded(model: LoadedModel, name: str, temperature: float, picoseconds: float) -> Any:
    """How far the model comes alone."""
    atoms = block(name)
    atoms.calc = model.calculator(warn_outside=False)
    set_thermal_momenta(atoms, temperature, 0)
    dynamics = Langevin(
        atoms,
        TIME_STEP * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        rng=np.random.default_rng(0),
        fixcm=False,
    )
    closest = np.inf
    hottest = 0.0
    blown = None
    while blown is None and dynamics.nsteps * TIME_STEP < 1000 * picoseconds:
        try:
            dynamics.run(LOOK)
        except EvenfieldError as error:
            # no finite forces, or no neighbours that could be found
            blown = error.message
            break
        own = float(_over_radii(atoms).min())
        closest = min(closest, own)
        hottest = max(hottest, atoms.get_temperature())
        if not np.isfinite(atoms.get_potential_energy()) or not hottest <= HOT * temperature:
            blown = f"{hottest:.0f} K"
        elif own < FUSED:
            blown = f"two atoms at {own:.2f} of the sum of their radii"
    return {
        "case": f"{name}:{temperature:g}",
        "picoseconds": dynamics.nsteps * TIME_STEP / 1000,
        "blown_up": blown,
        "closest_over_radii": closest,
        "hottest": hottest,
        "fragments": fragments(atoms),
    }


def _over_radii(atoms: Atoms) -> np.ndarray:
    """Distances over the sums of covalent radii, (N, N); infinite for an atom and itself."""
    radii = covalent_radii[atoms.numbers]
    ratio = atoms.get_all_distances() / (radii[:, None] + radii[None, :])
    np.fill_diagonal(ratio, np.inf)
    return ratio


def fragments(atoms: Atoms) -> int:
    """Pieces with gaps of 6 A between them."""
    return int(connected_components(atoms.get_all_distances() < GAP)[0])


def guarded(model: LoadedModel, case: str, picoseconds: float, out: Path) -> dict[str, Any]:
    """How far the loop comes."""
    name, temperature = case.split(":")
    config = LearnConfig(
        oracle="GFN1-xTB",
        labels=40,
        initial=8,
        initial_rattle=(0.05, 0.4),
        batch=8,
        steps=round(1000 * picoseconds / TIME_STEP),
        every=20,
        time_step=TIME_STEP,
        friction=FRICTION,
        temperatures=[float(temperature)],
        guard={"force_radius": 4.0},
        strategy="wide",
    )
    done = learn(model, [block(name)], out, config)
    walk = store.read(max(out.glob("rounds/*/walk-000.json")))
    state = store.from_json(walk["state"])
    frames = [store.from_json(frame["atoms"]) for frame in walk["frames"]]
    judged = frames[:: max(len(frames) // JUDGED, 1)]
    return {
        "case": case,
        "picoseconds": done.rounds[-1]["picoseconds"],
        "labels": done.rounds[-1]["labels"],
        "failed_labels": sum(len(one["failures"]) for one in done.rounds),
        "ended": done.ended,
        "settings": config.model_dump(mode="json", exclude={"gradient", "refit"}),
        "rounds": [
            {
                "labels": one["labels"],
                "picoseconds": one["picoseconds"],
                "force_rmse_before": (one["before"] or {}).get("force_rmse"),
                "covered": (one["before"] or {}).get("covered"),
                "stopped": [stop["text"] for stop in one["stopped"]],
            }
            for one in done.rounds
        ],
        "closest_over_radii": float(_over_radii(state).min()),
        "fragments": fragments(state),
        "after": against_oracle(load(done.model), judged, config),
    }


def against_oracle(model: LoadedModel, frames: list[Atoms], config: LearnConfig) -> dict[str, Any]:
    """Errors on structures of the last round, which the oracle is asked about only now."""
    calculator = model.calculator(uncertainty=True, warn_outside=False)
    found: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    inside: list[np.ndarray] = []
    for atoms in frames:
        true = label(atoms, new_calculator(config.oracle, {}), np.inf).get_forces()
        atoms.calc = calculator
        error = atoms.get_forces() - true
        found.append(error)
        sizes.append(true)
        inside.append(np.linalg.norm(error, axis=1) <= calculator.results["forces_radius"])
    return {
        "structures": len(frames),
        "force_rmse": float(np.sqrt(np.mean(np.square(found)))),
        "force_rms": float(np.sqrt(np.mean(np.square(sizes)))),
        "covered_by_90": float(np.mean(inside)),
    }


def main() -> None:
    """Print a JSON object for each part, and write all of them where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="evenfield-1")
    parser.add_argument("--cases", nargs="+", default=["MgO:3000", "NaCl:2500", "BeO:3000"])
    parser.add_argument("--unguarded", type=float, default=5.0, help="ps")
    parser.add_argument("--guarded", type=float, default=50.0, help="ps")
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    result: dict[str, Any] = {"model": model.reference, "unguarded": []}

    def tell(found: dict[str, Any]) -> None:
        print(json.dumps(found), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    for case in arguments.cases:
        path = arguments.work / f"unguarded-{case.replace(':', '-')}.json"
        if not path.exists():
            name, temperature = case.split(":")
            found = unguarded(model, name, float(temperature), arguments.unguarded)
            store.write(path, found)
        result["unguarded"].append(store.read(path))
        tell(result["unguarded"][-1])
    blown = [one["case"] for one in result["unguarded"] if one["blown_up"] is not None]
    case = (blown or arguments.cases)[0]
    out = arguments.work / f"guarded-{case.replace(':', '-')}"
    result["guarded"] = guarded(model, case, arguments.guarded, out)
    tell(result["guarded"])


if __name__ == "__main__":
    main()
