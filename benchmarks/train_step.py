"""Training step and inference call of evenfield and a peer: paired and interleaved.

    python benchmarks/train_step.py --peer-python PEER/bin/python --channels 64

Two workers hold the same structures in memory.  In every round each does its turn while the other
waits, so that what else the machine does strikes both alike; the figure of merit is the median over
rounds of (seconds of the peer) / (seconds of evenfield).  `--peer evenfield` compares us with
ourselves, or with another checkout: the ratio of a fair clock is 1.  See README.md in this folder.
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
from benchmark_structures import copper, from_file
from worker_process import KINDS, Worker


RESULTS = Path(__file__).resolve().parent / "results"


def measure(ours: Worker, peer: Worker, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per call of both sides in every round, {kind: {side: [...]}}."""
    samples: dict[str, dict[str, list[float]]] = {}
    for kind in ours.counts:
        samples[kind] = {"ours": [], "peer": []}

    for number in range(rounds):
        ratios = []
        for kind, sides in samples.items():
            # one directly after the other, so that both meet the same state of the machine
            our_seconds = ours.turn(kind)
            peer_seconds = peer.turn(kind)
            sides["ours"].append(our_seconds)
            sides["peer"].append(peer_seconds)
            ratios.append(f"{kind} {peer_seconds / our_seconds:.2f}")
        print(f"round {number + 1}/{rounds}: ratio " + ", ".join(ratios), flush=True)
    return samples


def summarise(samples: dict[str, list[float]], num_atoms: int) -> dict[str, Any]:
    """Medians of one kind, the median of the paired ratio and its range, and atoms/s."""
    # the median of paired ratios, not the ratio of medians: what slows one round slows both sides
    ratios = []
    for our_seconds, peer_seconds in zip(samples["ours"], samples["peer"], strict=True):
        ratios.append(peer_seconds / our_seconds)

    summary: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }
    for side, values in samples.items():
        summary[f"{side}_seconds"] = statistics.median(values)
    for side in samples:
        summary[f"{side}_atoms_per_second"] = num_atoms / summary[f"{side}_seconds"]
    summary["samples"] = samples
    return summary


def parse_arguments() -> argparse.Namespace:
    """Options of the comparison; the sizes are those of both models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer", choices=("mace", "nequip", "evenfield"), default="mace")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="python of the peer's environment"
    )
    parser.add_argument("--mode", choices=("eager", "compile"), default="eager", help="ours")
    parser.add_argument("--peer-mode", choices=("eager", "compile"), default="eager")
    parser.add_argument("--structures", type=Path, help="file with labels; default: 128 Cu atoms")
    parser.add_argument(
        "--cells", type=int, choices=(1, 2), default=1, help="that the 128 Cu atoms stand in"
    )
    parser.add_argument("--energy-key", help="info key of the energy in eV, if not ASE's own")
    parser.add_argument("--forces-key", help="array key of the forces in eV/A, if not ASE's own")
    parser.add_argument(
        "--max-structures", type=int, default=8, help="how many of its first to take"
    )
    parser.add_argument("--channels", type=int, choices=(32, 64, 128), default=64)
    parser.add_argument("--hidden-l", type=int, default=1, help="highest degree between layers")
    parser.add_argument("--l-max", type=int, default=3, help="highest degree on edges")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--peer-layers", type=int, help="of the peer, if not as many")
    parser.add_argument("--peer-l-max", type=int, help="of the peer, if not the same")
    parser.add_argument("--cutoff", type=float, default=5.0, help="A")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to time")
    parser.add_argument("--threads", type=int, default=2, help="1 bears a busy machine best")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--turn-seconds", type=float, default=2.0, help="length of one side's turn, about"
    )
    parser.add_argument(
        "--output", type=Path, help="default: a name from the settings under results/"
    )
    return parser.parse_args()


def command_line(options: argparse.Namespace) -> str:
    """The command that repeats this run; nobody else's paths."""
    words = ["python benchmarks/train_step.py"]
    for key, value in vars(options).items():
        if key == "output" or value is None:
            continue
        if key == "peer_python":
            shown = "PEER/bin/python"
        elif key == "structures":
            shown = value.name
        elif key == "kinds":
            shown = " ".join(value)
        else:
            shown = value
        option = key.replace("_", "-")
        words.append(f"--{option} {shown}")
    return " ".join(words)


def checkout() -> str | None:
    """What git calls this checkout, with -dirty when it has changes; None outside a repository."""
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def start_workers(options: argparse.Namespace) -> tuple[Worker, Worker]:
    """Both sides, each with the same structures in memory and with their graphs checked."""
    structures = copper(options.cells)
    if options.structures:
        keys = (options.energy_key, options.forces_key)
        structures = from_file(options.structures, options.max_structures, *keys)

    # the peer may be compared at another depth or degree, at equal error say
    sizes = argparse.Namespace(**vars(options))
    sizes.layers = options.peer_layers or options.layers
    sizes.l_max = options.peer_l_max or options.l_max

    # workers read the file before they answer, so it may go afterwards
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        ase.io.write(path, structures)
        ours = Worker("evenfield", sys.executable, options.mode, path, options)
        peer = Worker(options.peer, options.peer_python, options.peer_mode, path, sizes)

    our_edges = ours.facts["num_edges"]
    peer_edges = peer.facts["num_edges"]
    if our_edges != peer_edges:
        raise RuntimeError(f"not the same graph: {our_edges} and {peer_edges} edges")
    return ours, peer


def default_output(options: argparse.Namespace) -> Path:
    """A name that says what was compared."""
    source = "cu128"
    if options.structures:
        source = options.structures.name.split(".")[0]
    sides = f"{options.mode}_{options.peer}_{options.peer_mode}"
    return RESULTS / f"train_step_{sides}_c{options.channels}_{source}.json"


def main() -> None:
    options = parse_arguments()
    before = os.getloadavg()[0]
    if before > 0.5:
        print(
            f"warning: load average {before:.1f}: with several threads, "
            "ratios on a busy machine mean nothing"
        )

    ours, peer = start_workers(options)
    samples = measure(ours, peer, options.rounds)
    results = {}
    for kind, of_kind in samples.items():
        result = summarise(of_kind, ours.facts["num_atoms"])
        results[kind] = result
        values = (
            f"ours {result['ours_seconds']:.4f} s, {options.peer} {result['peer_seconds']:.4f} s"
        )
        span = f"{result['ratio_min']:.2f} to {result['ratio_max']:.2f}"
        print(f"{kind}: {values}, median ratio {result['ratio']:.2f} ({span})")

    report = {
        "command": command_line(options),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.machine(),
            "cores": os.cpu_count(),
            "load_before": before,
            "load_after": os.getloadavg()[0],
        },
        "ours": {"checkout": checkout()} | ours.facts | ours.ask("stop", 0),
        "peer": {"name": options.peer} | peer.facts | peer.ask("stop", 0),
        "results": results,
    }
    output = options.output or default_output(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
