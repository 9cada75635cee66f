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
    samples: dict[str, dict[str, list[float]]] = {
        kind: {"ours": [], "peer": []} for kind in ours.counts
    }
    for number in range(rounds):
        for kind in samples:
            samples[kind]["ours"].append(ours.turn(kind))
            samples[kind]["peer"].append(peer.turn(kind))
        ratios = (
            f"{kind} {samples[kind]['peer'][-1] / samples[kind]['ours'][-1]:.2f}"
            for kind in samples
        )
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
        if key != "output" and value is not None:
            shown = {"peer_python": "PEER/bin/python"}.get(
                key, Path(value).name if key == "structures" else value
            )
            shown = " ".join(shown) if key == "kinds" else shown
            words.append(f"--{key.replace('_', '-')} {shown}")
    return " ".join(words)


def checkout() -> str | None:
    """What git calls this checkout, with -dirty when it has changes; None outside a repository."""
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    )


def main() -> None:
    options = parse_arguments()
    structures = copper(options.cells)
    if options.structures:
        keys = (options.energy_key, options.forces_key)
        structures = from_file(options.structures, options.max_structures, *keys)
    before = os.getloadavg()[0]
    if before > 0.5:
        print(
            f"warning: load average {before:.1f}: with several threads, "
            "ratios on a busy machine mean nothing"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structures.extxyz"
        ase.io.write(path, structures)
        ours = Worker("evenfield", sys.executable, options.mode, path, options)
        sizes = argparse.Namespace(**vars(options))
        sizes.layers = options.peer_layers or options.layers
        sizes.l_max = options.peer_l_max or options.l_max
        peer = Worker(options.peer, options.peer_python, options.peer_mode, path, sizes)
    if ours.facts["num_edges"] != peer.facts["num_edges"]:
        raise RuntimeError(
            f"not the same graph: {ours.facts['num_edges']} and {peer.facts['num_edges']} edges"
        )
    samples = measure(ours, peer, options.rounds)
    results = {kind: summarise(samples[kind], ours.facts["num_atoms"]) for kind in samples}
    for kind, result in results.items():
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
    source = options.structures.name.split(".")[0] if options.structures else "cu128"
    sides = f"{options.mode}_{options.peer}_{options.peer_mode}"
    name = f"train_step_{sides}_c{options.channels}_{source}.json"
    output = options.output or RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
