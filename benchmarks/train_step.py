"""Training step and inference call of evenfield beside a peer's: paired, interleaved, on the same structures.

    python benchmarks/train_step.py --peer-python PEER/bin/python --channels 64

Two workers hold the same structures in memory.  In every round each does its turn while the other waits, so that
what else the machine does strikes both alike; the figure of merit is the median over rounds of
(seconds of the peer) / (seconds of evenfield).  `--peer evenfield` compares us with ourselves, or with another
checkout: the ratio of a fair clock is 1.  See README.md in this folder.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


HERE = Path(__file__).resolve().parent
KINDS = ("train", "infer")
WARM_UP = 4  # calls; TorchScript settles after three


def copper() -> list[Atoms]:
    """128 atoms of fcc copper, rattled by 0.1 A, with energy and forces of the EMT potential."""
    atoms = bulk("Cu", cubic=True).repeat((4, 4, 2))
    atoms.rattle(0.1, seed=0)
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return [atoms]


class Worker:
    """One side: a process that trains or infers when it is asked and is idle otherwise."""

    def __init__(
        self, name: str, python: str, mode: str, structures: Path, options: argparse.Namespace
    ) -> None:
        sizes = {
            n: getattr(options, n) for n in ("channels", "hidden_l", "l_max", "layers", "cutoff", "threads")
        }
        command = [python, str(HERE / f"{name}_worker.py"), "--structures", str(structures), "--mode", mode]
        for key, value in sizes.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        self.name, self.errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
        )
        self.facts = self.answer()
        self.counts = {kind: self.calibrate(kind, options.turn_seconds) for kind in KINDS}

    def answer(self) -> dict[str, Any]:
        """The next JSON object of the worker; RuntimeError with its last words if it has died."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.errors.seek(0)
        raise RuntimeError(f"the {self.name} worker ended:\n{self.errors.read()[-2000:]}")

    def ask(self, kind: str, count: int) -> dict[str, Any]:
        """Have `count` calls made; returns the worker's answer."""
        self.process.stdin.write(json.dumps({kind: count}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def calibrate(self, kind: str, turn_seconds: float) -> int:
        """Warm up; returns the number of calls that fill a turn, at least 2."""
        self.ask(kind, WARM_UP)
        return max(2, round(turn_seconds / (self.ask(kind, 2)["seconds"] / 2)))

    def turn(self, kind: str) -> float:
        """Seconds per call in one turn."""
        return self.ask(kind, self.counts[kind])["seconds"] / self.counts[kind]


def measure(ours: Worker, peer: Worker, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per call of both sides in every round, {kind: {side: [...]}}."""
    samples: dict[str, dict[str, list[float]]] = {kind: {"ours": [], "peer": []} for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS:
            samples[kind]["ours"].append(ours.turn(kind))
            samples[kind]["peer"].append(peer.turn(kind))
        ratios = (f"{kind} {samples[kind]['peer'][-1] / samples[kind]['ours'][-1]:.2f}" for kind in KINDS)
        print(f"round {number + 1}/{rounds}: ratio " + ", ".join(ratios), flush=True)
    return samples


def summarise(samples: dict[str, list[float]], num_atoms: int) -> dict[str, Any]:
    """Medians of one kind, the median of the paired ratio and its range, and atoms/s."""
    ratios = [peer / ours for ours, peer in zip(samples["ours"], samples["peer"], strict=True)]
    medians = {f"{side}_seconds": statistics.median(values) for side, values in samples.items()}
    rates = {f"{side}_atoms_per_second": num_atoms / medians[f"{side}_seconds"] for side in samples}
    spread = {"ratio_min": min(ratios), "ratio_max": max(ratios)}
    return {"ratio": statistics.median(ratios), **spread, **medians, **rates, "samples": samples}


def parse_arguments() -> argparse.Namespace:
    """Options of the comparison; the sizes are those of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", choices=("mace", "evenfield"), default="mace")
    parser.add_argument("--peer-python", default=sys.executable, help="python of the peer's environment")
    parser.add_argument("--mode", choices=("eager",), default="eager", help="ours")
    parser.add_argument("--peer-mode", choices=("eager", "compile"), default="eager")
    parser.add_argument(
        "--structures", type=Path, help="extxyz with energy and forces; default: 128 Cu atoms"
    )
    parser.add_argument(
        "--max-structures", type=int, default=8, help="how many of its first structures to take"
    )
    parser.add_argument("--channels", type=int, choices=(32, 64, 128), default=64)
    parser.add_argument("--hidden-l", type=int, default=1, help="highest degree between layers")
    parser.add_argument("--l-max", type=int, default=3, help="highest degree on edges")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cutoff", type=float, default=5.0, help="A")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turn-seconds", type=float, default=2.0, help="length of one side's turn, about")
    parser.add_argument("--output", type=Path, help="default: a name from the settings under results/")
    return parser.parse_args()


def command_line(options: argparse.Namespace) -> str:
    """The command that repeats this run; nobody else's paths."""
    words = ["python benchmarks/train_step.py"]
    for key, value in vars(options).items():
        if key != "output" and value is not None:
            shown = {"peer_python": "PEER/bin/python"}.get(
                key, Path(value).name if key == "structures" else value
            )
            words.append(f"--{key.replace('_', '-')} {shown}")
    return " ".join(words)


def main() -> None:
    options = parse_arguments()
    structures = (
        ase.io.read(options.structures, f":{options.max_structures}") if options.structures else copper()
    )
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        ase.io.write(path, structures)
        ours = Worker("evenfield", sys.executable, options.mode, path, options)
        peer = Worker(options.peer, options.peer_python, options.peer_mode, path, options)
    if ours.facts["num_edges"] != peer.facts["num_edges"]:
        raise RuntimeError(
            f"not the same graph: {ours.facts['num_edges']} and {peer.facts['num_edges']} edges"
        )
    samples = measure(ours, peer, options.rounds)
    results = {kind: summarise(samples[kind], ours.facts["num_atoms"]) for kind in KINDS}
    for kind, result in results.items():
        values = f"ours {result['ours_seconds']:.4f} s, {options.peer} {result['peer_seconds']:.4f} s"
        span = f"{result['ratio_min']:.2f} to {result['ratio_max']:.2f}"
        print(f"{kind}: {values}, median ratio {result['ratio']:.2f} ({span})")
    report = {
        "command": command_line(options),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.machine(), "cores": os.cpu_count(), "load_before": before},
        "ours": ours.facts | ours.ask("stop", 0),
        "peer": {"name": options.peer} | peer.facts | peer.ask("stop", 0),
        "results": results,
    }
    source = options.structures.name.split(".")[0] if options.structures else "cu128"
    name = f"train_step_{options.peer}_{options.peer_mode}_c{options.channels}_{source}.json"
    output = options.output or HERE / "results" / name
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
