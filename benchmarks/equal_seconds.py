"""Test errors after equal processor seconds of training, for evenfield, MACE and NequIP.

    python benchmarks/equal_seconds.py OUT DATA --mace PYTHON --nequip PYTHON
        [--budgets 120 360 1080] [--seeds 0] [--channels 32] [--nequip-layers 4] [--nequip-l-max 1]
        [--ours KEY=VALUE ...] [--only MODEL ...]

DATA is a converted set with splits; PYTHONs belong to the peers' own virtual environments. Every
budget is a run with a schedule of its own. Counted is the processor time of the training loop: not
imports, neighbour lists that are made before, compiling, validation or the test. MACE lowers its
rate from epoch to epoch, so its epochs are made short: a twentieth of a run. The peers validate on
at most 100 structures and are told the energies of free atoms that ours takes from the census.
Writes OUT.json, which is taken up when it is there, and OUT.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ase.neighborlist import neighbor_list
from mace_finetune import MODEL, Mace, write
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.progress import track

from evenfield.core.figures.style import STYLE, looks, plain_log_ticks
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.pretrain.config import PretrainConfig


HERE = Path(__file__).resolve().parent
CUTOFF = 5.0
EPOCHS = 20  # of a run of MACE
BATCH_SIZE = 5  # structures, of MACE
MODELS = ("evenfield", "MACE", "NequIP")
FIGURES = {
    "force_mae": ("force MAE (eV/A)", 1.0),
    "energy_mae_per_atom": ("energy MAE (meV/atom)", 1000.0),
}


def ask(python: str, script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One run of a trainer in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.json"
        path.write_text(json.dumps(settings))
        done = subprocess.run(
            [python, str(HERE / script), str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"{script} failed:\n" + done.stderr[-3000:])
    # libraries print too, and the result is the last line
    return json.loads(done.stdout.splitlines()[-1])


def taken_up(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that a result has already; exits with one line if other settings made it."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        sys.exit(
            f"{path} was made with {content['settings']}, not {settings}: "
            "remove it or write to another file"
        )
    return content["rows"]


class Runs:
    """The three trainers on one data set."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.parts = {}
        for split, number in read_info(options.data)["num_structures"].items():
            if number:
                self.parts[split] = list(iter_structures(options.data, split))

        # the peers cannot train without a validation set; at most 100 structures, evenly spread
        valid = self.parts.get("valid", self.parts["train"][::20])
        every = math.ceil(len(valid) / 100)
        self.parts["valid"] = valid[::every]

        self.files = {}
        for split, structures in self.parts.items():
            self.files[split] = str(write(structures, folder / f"{split}.xyz"))

        census = read_census(options.data)
        levels = census["levels_of_theory"]
        if len(levels) != 1:
            sys.exit(
                f"{options.data} has {len(levels)} levels of theory; the peers can be given one"
            )
        (level,) = levels.values()
        self.e0 = {name: level["e0"][name] for name in census["per_element"]}  # eV
        self._mace: tuple[Mace, float] | None = None

    def evenfield(self, seconds: float, seed: int) -> dict[str, Any]:
        words = [
            f"data={self.options.data}",
            "out=none",
            f"seed={seed}",
            f"model.channels={self.options.channels}",
        ]
        config = load_settings(PretrainConfig, overrides=[*words, *self.options.ours])
        settings = {"seconds": seconds, "config": config.model_dump(mode="json")}
        return ask(sys.executable, "evenfield_trainer.py", settings)

    def nequip(self, seconds: float, seed: int) -> dict[str, Any]:
        labelled = [s.forces for s in self.parts["train"] if s.forces is not None]
        forces = np.concatenate(labelled)
        settings = {
            **self.files,
            "elements": list(self.e0),
            "e0": self.e0,
            "cutoff": CUTOFF,
            "force_rms": float(np.sqrt((forces**2).mean())),
            "num_neighbours": self._neighbours(),
            "channels": self.options.channels,
            "layers": self.options.nequip_layers,
            "l_max": self.options.nequip_l_max,
            "seconds": seconds,
            "seed": seed,
        }
        return ask(self.options.nequip, "nequip_trainer.py", settings)

    def mace(self, seconds: float, seed: int) -> dict[str, Any]:
        mace, per_structure = self._mace_rate()
        # its loop counts epochs, not seconds: as many batches as fit into the budget
        seconds_per_batch = per_structure * BATCH_SIZE
        batches = max(1, round(seconds / seconds_per_batch / EPOCHS))
        name = f"run-{seconds:.0f}-{seed}"
        row = mace.train(name, EPOCHS, batches, **self._mace_settings(), seed=seed)
        steps = batches * EPOCHS
        return row | {"steps": steps, "structures": steps * BATCH_SIZE}

    def _mace_rate(self) -> tuple[Mace, float]:
        """MACE's trainer and its processor seconds per structure, from runs of 1 and 3 epochs."""
        if self._mace is None:
            mace = Mace(self.options.mace, self.folder)
            batches = 20
            # The errors of this probe are not read, so the smaller file serves as its test.
            probe = self._mace_settings() | {"test_file": self.files["valid"]}
            one = mace.train("probe", 1, batches, **probe)["seconds"]
            three = mace.train("probe", 3, batches, **probe)["seconds"]
            # the difference of both is free of what a start costs
            per_epoch = (three - one) / 2
            self._mace = mace, per_epoch / batches / BATCH_SIZE
        return self._mace

    def _mace_settings(self) -> dict[str, Any]:
        e0 = {atomic_numbers[name]: energy for name, energy in self.e0.items()}
        return MODEL | {
            "num_channels": self.options.channels,
            "E0s": str(e0),
            "atomic_numbers": str(sorted(e0)),
            "batch_size": BATCH_SIZE,
            "eval_interval": 1,  # it saves only a state that it validated
            **{f"{split}_file": path for split, path in self.files.items()},
        }

    def _neighbours(self) -> float:
        """Mean number of neighbours, of 200 structures."""
        train = self.parts["train"]
        drawn = np.random.default_rng(0).permutation(len(train))[:200]
        num_edges = 0
        num_atoms = 0
        for index in drawn:
            structure = train[index]
            num_edges += len(neighbor_list("i", structure.to_atoms(), CUTOFF))
            num_atoms += len(structure)
        return num_edges / num_atoms


@rc_context(STYLE)
def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Errors over processor seconds."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (key, (label, factor)) in zip(panels, FIGURES.items(), strict=True):
        for model, (colour, marker) in zip(MODELS, looks(), strict=False):
            own = [row for row in rows if row["model"] == model]
            if not own:
                continue
            own.sort(key=lambda row: row["seconds"])
            seconds = [row["seconds"] for row in own]
            errors = [factor * row[key] for row in own]
            axes.plot(seconds, errors, f"{marker}-", color=colour, label=model)
        axes.set(xscale="log", yscale="log", xlabel="processor seconds of training", ylabel=label)
        plain_log_ticks(axes.xaxis)
        plain_log_ticks(axes.yaxis)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(MODELS))
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--mace", help="python of MACE's environment")
    parser.add_argument("--nequip", help="python of NequIP's environment")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[120, 360, 1080], help="processor seconds"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--nequip-layers", type=int, default=4)
    parser.add_argument("--nequip-l-max", type=int, default=1)
    parser.add_argument(
        "--ours", nargs="*", default=[], metavar="KEY=VALUE", help="settings of our pretraining"
    )
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="of the three")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    path = Path(f"{options.out}.json")
    settings = {
        "data": options.data.name,
        "channels": options.channels,
        "nequip_layers": options.nequip_layers,
        "nequip_l_max": options.nequip_l_max,
        "ours": options.ours,
    }
    rows = taken_up(path, settings)
    done = {(row["model"], row["budget"], row["seed"]) for row in rows}

    # a peer takes part when its environment is given
    pythons = {"evenfield": sys.executable, "MACE": options.mace, "NequIP": options.nequip}
    names = [name for name in options.only if pythons[name]]

    # models innermost: a comparison that is stopped early has whole rows
    todo = []
    for seed, budget, model in itertools.product(options.seeds, options.budgets, names):
        if (model, budget, seed) not in done:
            todo.append((model, budget, seed))

    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(options, Path(folder))
        for model, budget, seed in track(todo, "runs"):
            row = getattr(runs, model.lower())(budget, seed)
            rows.append({"model": model, "budget": budget, "seed": seed} | row)
            print(rows[-1], flush=True)
            path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    draw(rows, options.data.name, Path(f"{options.out}.png"))


if __name__ == "__main__":
    main()
