"""MACE pretrained and fine-tuned by its own trainer on the draws of our few-shot curves.

    python benchmarks/mace_finetune.py MACE_PYTHON LONGTAIL OUT TARGET [TARGET ...]
        [--sizes 16 64] [--seeds 0 1 2] [--pretrain-epochs 2] [--seconds 45]

MACE_PYTHON belongs to MACE's own virtual environment; LONGTAIL and TARGETs are converted data sets.
MACE is pretrained on LONGTAIL, then fine-tuned twice on each draw: `frozen` trains its readouts
alone (its --freeze 6), `full` all. The number of epochs of a fine-tuning comes from the processor
time of one epoch, measured first, and the time given; start-up and the final test are not counted.
Loss (universal 1/10/100), EMA, AMSGrad and rate are those that MACE's documentation gives for its
foundation models; E0s in fine-tuning are its "estimated". Writes OUT/mace.json; cells that it holds
are not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from rich.progress import track

from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.few_shot.curve import spread
from evenfield.finetune.target import hold_out, open_target


KEYS = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
MODEL = {
    "model": "MACE",
    "num_channels": 32,
    "max_L": 1,
    "max_ell": 3,
    "correlation": 3,
    "num_interactions": 2,
    "r_max": 5.0,
}
LOSS = {
    "loss": "universal",
    "energy_weight": 1,
    "forces_weight": 10,
    "stress_weight": 100,
    "ema_decay": 0.99,
}
LAST_RATE = 0.05  # of the first, reached by an exponential schedule
FREEZE = {"frozen": 6, "full": 0}


def write(structures: list[Structure], path: Path, keys: dict[str, str] = KEYS) -> Path:
    """An extended XYZ file with labels in MACE's columns, those that `keys` names."""
    frames = []
    for structure in structures:
        atoms = structure.to_atoms()
        labels = atoms.calc.results
        atoms.calc = None
        for name, key in keys.items():
            if name in labels:
                (atoms.arrays if name == "forces" else atoms.info)[key] = np.asarray(labels[name])
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


class Mace:
    """MACE's trainer with the settings of all runs, in a process of its own."""

    def __init__(self, python: str, out: Path) -> None:
        self.out = out
        command = [python, str(Path(__file__).with_name("mace_trainer.py"))]
        log = (out / "mace.log").open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def train(
        self,
        name: str,
        epochs: int,
        batches: int | None = None,
        measured: dict[str, str] | None = None,
        **options: object,
    ) -> dict[str, Any]:
        """Test errors (eV/A, eV/atom) and processor seconds; an epoch has `batches` or all data.

        `measured` names the files of `test` and `inference` that the saved model is tested and
        timed with.
        """
        assert self.process.stdin and self.process.stdout
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)  # MACE would go on from there
        settings = {
            "name": name,
            "work_dir": folder,
            "max_num_epochs": epochs,
            "device": "cpu",
            "default_dtype": "float32",
            "eval_interval": max(1, epochs // 10),
            "error_table": "PerAtomMAE",
            "seed": 0,
            "valid_batch_size": 16,
            "plot": False,  # it predicts all structures once more
            "lr": 0.01,
            "scheduler": "ExponentialLR",
            "lr_scheduler_gamma": LAST_RATE ** (1 / epochs),
            **LOSS,
            **{f"{k}_key": v for k, v in KEYS.items()},
            **options,
        }
        # a flag that is on has no value
        flags = [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in settings.items()
        ]
        request = {"flags": [*flags, "--ema", "--amsgrad", "--save_cpu"], "batches": batches}
        if measured:
            request["measure"] = measured | {"model": str(folder / f"{name}.model")}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{name}: MACE failed: see {self.out / 'mace.log'}")
        return json.loads(answer)

    def epochs_for(self, seconds: float, **options: object) -> int:
        """How many epochs fit into processor seconds, by runs of one epoch and of three."""
        one, three = (self.train("probe", epochs, **options)["seconds"] for epochs in (1, 3))
        return max(1, round(seconds / max((three - one) / 2, 1e-3)))


def pretrain(mace: Mace, longtail: Path, epochs: int, content: dict) -> Path:
    """MACE's own model of the long-tail set; the path of its file."""
    model = mace.out / "pretrained" / "pretrained.model"
    if not model.is_file():
        parts = {s: list(iter_structures(longtail, s)) for s in ("train", "valid", "test")}
        files = {f"{s}_file": write(parts[s], mace.out / f"{s}.xyz") for s in ("valid", "test")}
        files["train_file"] = write(parts["train"], mace.out / "train.xyz")
        options = {**MODEL, "E0s": "average", "batch_size": 5}
        content["pretrained"] = {
            **mace.train("pretrained", epochs, **options, **files),
            "epochs": epochs,
        }
    return model


def cells(mace: Mace, model: Path, options: argparse.Namespace, content: dict) -> None:
    """Every target, size, seed and strategy that the file lacks."""
    epochs = content.setdefault("epochs", {})
    todo = [(t, n, how) for t in options.targets for n in options.sizes for how in FREEZE]
    todo = [(*cell, seed) for seed in options.seeds for cell in todo]
    for target, size, how, seed in track(todo, "MACE"):
        key = f"{target.name} {size} {how}"
        if any((r["cell"], r["seed"]) == (key, seed) for r in content["rows"]):
            continue
        opened = open_target(target, num_structures=size, seed=seed, valid_share=0)
        train, valid = hold_out(opened.train, 0.2, seed)
        files = {
            "train": train,
            "valid": valid,
            "test": spread(opened.test, options.test_structures),
        }
        settings = {f"{k}_file": write(v, mace.out / f"{k}.xyz") for k, v in files.items()}
        settings |= {
            "foundation_model": model,
            "multiheads_finetuning": False,
            "E0s": "estimated",
            "freeze": FREEZE[how],
            "batch_size": max(1, min(5, size // 4)),
            "lr": options.learning_rate,
        }
        if key not in epochs:
            epochs[key] = mace.epochs_for(options.seconds, **settings)
        errors = mace.train(f"{target.name}-{size}-{how}-{seed}", epochs[key], **settings)
        row = {"cell": key, "seed": seed, **errors, "epochs": epochs[key]}
        print(row, flush=True)
        content["rows"].append(row)
        (options.out / "mace.json").write_text(json.dumps(content, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mace_python")
    parser.add_argument("longtail", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("targets", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretrain-epochs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--test-structures", type=int, default=100)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "mace.json"
    content = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    mace = Mace(options.mace_python, options.out)
    model = pretrain(mace, options.longtail, options.pretrain_epochs, content)
    path.write_text(json.dumps(content, indent=1))
    cells(mace, model, options, content)


if __name__ == "__main__":
    main()
