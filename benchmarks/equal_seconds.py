"""Test errors after equal processor seconds of training, and the cost of inference, beside peers.

    python benchmarks/equal_seconds.py OUT DATA [--mace PYTHON] [--nequip PYTHON]
        [--sevennet PYTHON] [--tensornet PYTHON] [--pet PYTHON] [--grace PYTHON]
        [--budgets 120 360 1080] [--seeds 0] [--channels 32] [--nequip-layers 4] [--nequip-l-max 1]
        [--mace-channels 32] [--nequip-channels 32] [--sevennet-channels 16 32]
        [--tensornet-channels 32 64] [--pet-channels 64 128] [--grace-channels small medium]
        [--ours KEY=VALUE ...] [--only MODEL ...]

DATA is a converted data set with splits. Each PYTHON is that of a peer's own virtual environment,
and a peer takes part if its PYTHON is given. Every model, size, budget and seed is one run, with a
schedule as long as its budget. What counts is the processor time of the training loop: not imports,
compiling, validation, the test, or neighbour lists that are made beforehand. MACE lowers its
learning rate from epoch to epoch, so its epochs are made short: a twentieth of a run.

Equal for all: the structures, their energies and forces (nobody is given stress), the energies of
free atoms (from the census), the cutoff, one thread, and the code that tests. The peers validate on
at most 100 structures. Evenfield, NequIP and "MACE-light" have a core repulsion.

- "NequIP" has the squared loss of its tutorial, "NequIP-huber" the Huber losses of NequIP's
  foundation models.
- "MACE-light" is MACE with one scalar message, l_max 2, correlation 2 and two structures a batch;
  it gets through more steps than MACE with the settings of its documentation.
- The sizes of GRACE are those of its presets.

A row also holds the processor microseconds per atom for energy and forces on one thread, neighbour
list included, at 64 and 512 atoms (trainer_protocol.py). error_against_cost.py draws errors over
that cost:

    python benchmarks/equal_seconds.py OUT DATA --mace PYTHON --nequip PYTHON --sevennet PYTHON \\
        --tensornet PYTHON --pet PYTHON --grace PYTHON --channels 8 16 32 64 128 \\
        --mace-channels 16 32 --nequip-channels 16 32 --nequip-layers 2 --nequip-l-max 2 \\
        --budgets 300 --ours compute.compiled=true
    python benchmarks/error_against_cost.py PICTURE.png OUT.json

Writes OUT.json and OUT.png. If OUT.json exists, its runs are kept and the missing ones are done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.neighborlist import neighbor_list
from mace_finetune import KEYS, MODEL, Mace, write
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.progress import track
from trainer_protocol import SIZES

from evenfield.core.figures.style import COLOURS, MARKERS, STYLE, plain_log_ticks
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.census.census import read_census
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.pretrain.config import PretrainConfig


HERE = Path(__file__).resolve().parent
CUTOFF = 5.0  # A
EPOCHS = 20  # of a run of MACE
# The labels that the peers are given, and their names in the files.
LABELS = {"energy": KEYS["energy"], "forces": KEYS["forces"]}
# Model -> the settings of MACE beside its channels, and the structures in a batch.
MACE = {
    "MACE": ({}, 5),
    "MACE-light": ({"max_L": 0, "max_ell": 2, "correlation": 2, "pair_repulsion": True}, 2),
}
# Model -> the loss of NequIP.
NEQUIP = {"NequIP": "squares", "NequIP-huber": "huber"}
# Model -> the preset of GRACE.
GRACE = {
    "GRACE-1L": "GRACE_1LAYER_latest",
    "GRACE-2L": "GRACE_2LAYER_latest",
    "GRACE-FS": "FS",
}
# Model -> the option that names its environment and, with "_channels", its sizes; and the script of
# its trainer, which does one run in a process of its own. MACE's, which does several, is `Mace`.
PEERS = {
    "MACE": ("mace", ""),
    "MACE-light": ("mace", ""),
    "NequIP": ("nequip", "nequip_trainer.py"),
    "NequIP-huber": ("nequip", "nequip_trainer.py"),
    "SevenNet": ("sevennet", "sevennet_trainer.py"),
    "TensorNet": ("tensornet", "tensornet_trainer.py"),
    "PET": ("pet", "pet_trainer.py"),
    **dict.fromkeys(GRACE, ("grace", "grace_trainer.py")),
}
MODELS = ("evenfield", *PEERS)
# Error in a row -> its name and unit in pictures, and the factor from eV.
FIGURES = {
    "force_mae": ("force MAE (eV/A)", 1.0),
    "energy_mae_per_atom": ("energy MAE (meV/atom)", 1000.0),
}


def ask(python: str, script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The row of one run of a trainer in a process of its own; exits if it fails."""
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
    """Rows that a result file has already; exits with one line if other settings made it."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        sys.exit(
            f"{path} was made with {content['settings']}, not {settings}: "
            "remove it or write to another file"
        )
    return content["rows"]


def inference_structures(structures: list[Atoms]) -> list[Atoms]:
    """One periodic structure, repeated to 64 and to 512 atoms, or as near as it comes.

    It is the one that comes nearest to 64; of several that do, the largest, then the first. Empty
    if none is periodic.
    """

    def preference(atoms: Atoms) -> tuple[float, int]:
        copies = max(1, round(SIZES[0] / len(atoms)))
        return abs(copies * len(atoms) - SIZES[0]), -len(atoms)

    periodic = [atoms for atoms in structures if atoms.pbc.all()]
    if not periodic:
        return []
    chosen = min(periodic, key=preference)
    bare = Atoms(chosen.numbers, chosen.positions, cell=chosen.cell, pbc=True)
    return [repeated(bare, max(1, round(size / len(bare)))) for size in SIZES]


def repeated(atoms: Atoms, copies: int) -> Atoms:
    """So many copies, with the cell as near to a cube as the prime factors allow."""
    factors = []
    rest = copies
    for factor in range(2, copies + 1):
        while rest % factor == 0:
            factors.append(factor)
            rest //= factor
    # the largest factor first, each along the axis that is the shortest by then
    for factor in reversed(factors):
        repeats = [1, 1, 1]
        repeats[int(np.argmin(atoms.cell.lengths()))] = factor
        atoms = atoms.repeat(repeats)
    return atoms


class Runs:
    """Runs of all trainers on one data set, whose structures are written to `folder`."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.parts = {}
        for split, number in read_info(options.data)["num_structures"].items():
            if number:
                self.parts[split] = list(iter_structures(options.data, split))

        # the peers cannot train without a validation set: at most 100 structures, evenly spread
        valid = self.parts.get("valid", self.parts["train"][::20])
        every = math.ceil(len(valid) / 100)
        self.parts["valid"] = valid[::every]

        self.files = {}
        for split, structures in self.parts.items():
            self.files[split] = str(write(structures, folder / f"{split}.xyz", LABELS))
        timed = inference_structures([structure.to_atoms() for structure in self.parts["test"]])
        path = folder / "inference.xyz"
        ase.io.write(path, timed, format="extxyz")
        self.measured = {"test": self.files["test"], "inference": str(path)}

        census = read_census(options.data)
        levels = census["levels_of_theory"]
        if len(levels) != 1:
            sys.exit(
                f"{options.data} has {len(levels)} levels of theory; the peers can be given one"
            )
        (level,) = levels.values()
        self.e0 = {name: level["e0"][name] for name in census["per_element"]}  # eV
        self._mace_rates: dict[tuple[str, int], tuple[Mace, float]] = {}
        """Model and channels -> what `_mace_rate` returns."""

    def run(self, model: str, channels: int | str, seconds: float, seed: int) -> dict[str, Any]:
        """The row of one run: of a model with a size, for so many processor seconds."""
        if model == "evenfield":
            return self._evenfield(channels, seconds, seed)
        if model in MACE:
            return self._mace(model, int(channels), seconds, seed)
        option, script = PEERS[model]
        settings = self._peer_settings | {"channels": channels, "seconds": seconds, "seed": seed}
        if model in NEQUIP:
            settings |= {
                "layers": self.options.nequip_layers,
                "l_max": self.options.nequip_l_max,
                "loss": NEQUIP[model],
            }
        if model in GRACE:
            settings |= {"preset": GRACE[model], "size": channels}
        return ask(getattr(self.options, option), script, settings)

    def _evenfield(self, channels: int | str, seconds: float, seed: int) -> dict[str, Any]:
        """The row of one run of our own trainer."""
        words = [
            f"data={self.options.data}",
            "out=none",
            f"seed={seed}",
            f"model.channels={channels}",
            "loss.stress=0",
        ]
        config = load_settings(PretrainConfig, overrides=[*words, *self.options.ours])
        settings = {"seconds": seconds, "config": config.model_dump(mode="json")} | self.measured
        return ask(sys.executable, "evenfield_trainer.py", settings)

    @cached_property
    def _peer_settings(self) -> dict[str, Any]:
        """What the trainer of every peer but MACE is told."""
        train = self.parts["train"]
        forces = np.concatenate([one.forces for one in train if one.forces is not None])
        return {
            **self.files,
            **self.measured,
            "elements": list(self.e0),
            "e0": self.e0,
            "cutoff": CUTOFF,
            "force_rms": float(np.sqrt((forces**2).mean())),
            "num_neighbours": self._neighbours(),
        }

    def _mace(self, model: str, channels: int, seconds: float, seed: int) -> dict[str, Any]:
        """The row of one run of MACE, whose loop counts epochs and not seconds."""
        mace, seconds_per_structure = self._mace_rate(model, channels)
        batch_size = MACE[model][1]
        # of an epoch: as many as fit into the budget
        batches = max(1, round(seconds / seconds_per_structure / batch_size / EPOCHS))
        settings = self._mace_settings(model, channels) | {"seed": seed}
        name = f"run-{model}-{channels}-{seconds:.0f}-{seed}"
        row = mace.train(name, EPOCHS, batches, self.measured, **settings)
        steps = batches * EPOCHS
        return row | {"steps": steps, "structures": steps * batch_size}

    def _mace_rate(self, model: str, channels: int) -> tuple[Mace, float]:
        """MACE's trainer and its processor seconds per structure, from runs of 1 and 3 epochs."""
        key = model, channels
        if key not in self._mace_rates:
            # one trainer, which is a process, serves all models and sizes
            started = [mace for mace, _ in self._mace_rates.values()]
            mace = started[0] if started else Mace(self.options.mace, self.folder)
            batches = 20
            # The errors of this probe are not read, so the smaller file serves as its test.
            probe = self._mace_settings(model, channels) | {"test_file": self.files["valid"]}
            one = mace.train("probe", 1, batches, **probe)["seconds"]
            three = mace.train("probe", 3, batches, **probe)["seconds"]
            # the difference does not contain what a start costs
            seconds_per_epoch = (three - one) / 2
            self._mace_rates[key] = mace, seconds_per_epoch / batches / MACE[model][1]
        return self._mace_rates[key]

    def _mace_settings(self, model: str, channels: int) -> dict[str, Any]:
        """All settings of a run of MACE but its seed and length."""
        e0 = {atomic_numbers[name]: energy for name, energy in self.e0.items()}
        sizes, batch_size = MACE[model]
        return (
            MODEL
            | sizes
            | {
                "num_channels": channels,
                "E0s": str(e0),
                "atomic_numbers": str(sorted(e0)),
                "batch_size": batch_size,
                "stress_weight": 0,
                "eval_interval": 1,  # it saves only states that it has validated
                **{f"{split}_file": path for split, path in self.files.items()},
            }
        )

    def _neighbours(self) -> float:
        """Mean number of neighbours of an atom within the cutoff, over 200 structures."""
        train = self.parts["train"]
        drawn = np.random.default_rng(0).permutation(len(train))[:200]
        num_edges = 0
        num_atoms = 0
        for index in drawn:
            structure = train[index]
            num_edges += len(neighbor_list("i", structure.to_atoms(), CUTOFF))
            num_atoms += len(structure)
        return num_edges / num_atoms


def model_looks() -> Iterator[tuple[str, str]]:
    """Colour and marker for one series after the other: 49 pairs before one is repeated."""
    for shift in itertools.count():
        for index, colour in enumerate(COLOURS):
            yield colour, MARKERS[(index + shift) % len(MARKERS)]


@rc_context(STYLE)
def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Errors over processor seconds."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    series = sorted({(MODELS.index(row["model"]), row["channels"]) for row in rows}, key=str)
    for axes, (key, (label, factor)) in zip(panels, FIGURES.items(), strict=True):
        for (index, channels), (colour, marker) in zip(series, model_looks(), strict=False):
            model = MODELS[index]
            own = [r for r in rows if (r["model"], r["channels"]) == (model, channels)]
            own.sort(key=lambda row: row["seconds"])
            seconds = [row["seconds"] for row in own]
            errors = [factor * row[key] for row in own]
            axes.plot(seconds, errors, f"{marker}-", color=colour, label=f"{model}, {channels}")
        axes.set(xscale="log", yscale="log", xlabel="processor seconds of training", ylabel=label)
        plain_log_ticks(axes.xaxis)
        plain_log_ticks(axes.yaxis)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line, or of `words`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[120, 360, 1080], help="processor seconds"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[32], help="of evenfield")
    sizes = {
        "mace": [32],
        "nequip": [32],
        "sevennet": [16, 32],
        "tensornet": [32, 64],
        "pet": [64, 128],
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", metavar="PYTHON", help="of the environment of this peer")
        parser.add_argument(f"--{name}-channels", type=int, nargs="+", default=default)
    parser.add_argument("--grace", metavar="PYTHON", help="of the environment of this peer")
    parser.add_argument(
        "--grace-channels",
        nargs="+",
        choices=("small", "medium", "large"),
        default=["small", "medium"],
        help="the sizes of its presets",
    )
    parser.add_argument("--nequip-layers", type=int, default=4)
    parser.add_argument("--nequip-l-max", type=int, default=1)
    parser.add_argument(
        "--ours", nargs="*", default=[], metavar="KEY=VALUE", help="settings of our pretraining"
    )
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS, help="of the models")
    return parser.parse_args(words)


def sizes_of(options: argparse.Namespace) -> list[tuple[str, int | str]]:
    """Model and size of all that take part: ours, and the peers whose environments are given."""
    taking_part: list[tuple[str, int | str]] = []
    for model in options.only:
        if model == "evenfield":
            taking_part += [(model, channels) for channels in options.channels]
            continue
        option, _ = PEERS[model]
        if getattr(options, option):
            taking_part += [(model, size) for size in getattr(options, f"{option}_channels")]
    return taking_part


def main() -> None:
    options = parse_arguments()
    path = Path(f"{options.out}.json")
    settings = {
        "data": options.data.name,
        "nequip_layers": options.nequip_layers,
        "nequip_l_max": options.nequip_l_max,
        "ours": options.ours,
    }
    rows = taken_up(path, settings)
    done = {(row["model"], row["channels"], row["budget"], row["seed"]) for row in rows}

    # models innermost: a comparison that is stopped early has all models at some of the budgets
    todo = []
    wanted = itertools.product(options.seeds, options.budgets, sizes_of(options))
    for seed, budget, (model, channels) in wanted:
        if (model, channels, budget, seed) not in done:
            todo.append((model, channels, budget, seed))

    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(options, Path(folder))
        for model, channels, budget, seed in track(todo, "runs"):
            row = runs.run(model, channels, budget, seed)
            key = {"model": model, "channels": channels, "budget": budget, "seed": seed}
            rows.append(key | row)
            print(rows[-1], flush=True)
            path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    draw(rows, options.data.name, Path(f"{options.out}.png"))


if __name__ == "__main__":
    main()
