"""Peak memory of a training step per edge, evenfield and MACE.

    python benchmarks/memory_per_edge.py --peer-python PEER/bin/python

Each side, in its own process and environment, takes a step on 128 atoms of copper and one on 512;
the growth of its peak resident memory over the added edges is the figure. glibc gives every large
block back as it is freed, so that what is counted is alive. Optimizer states cancel.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace


RESULT = Path(__file__).resolve().parent / "results" / "memory_per_edge.json"
SIZE = {"cutoff": 5.0, "l_max": 3, "hidden_l": 1, "layers": 2}


def bytes_per_edge(side: str, channels: int) -> float:
    """Of one side, measured in this process."""
    import torch
    from ase.io import read

    torch.manual_seed(0)
    small, large = [read(sys.stdin.readline().strip(), ":") for _ in range(2)]
    options = SimpleNamespace(channels=channels, **SIZE)
    if side == "mace":
        from mace_worker import forward_of, make_batch, make_model

        batches = [make_batch(s, options.cutoff) for s in (small, large)]
        model = make_model(options, batches[0][1], 44.7)
        edges = [batch.edge_index.shape[1] for batch, _ in batches]
        calls = [forward_of(model, batch.to_dict(), training=True) for batch, _ in batches]
    else:
        from evenfield_worker import forward_of, make_batch

        from evenfield.model_zoo import Potential, PotentialConfig

        batches = [make_batch(s, options.cutoff) for s in (small, large)]
        model = Potential(PotentialConfig(channels=channels, num_neighbours=44.7))
        edges = [batch.num_edges for batch in batches]
        calls = [forward_of(model, batch) for batch in batches]
    peaks = []
    for call in calls:
        energy, forces = call()
        (energy.square().sum() + forces.square().sum()).backward()
        del energy, forces
        peaks.append(1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return (peaks[1] - peaks[0]) / (edges[1] - edges[0])


def main() -> None:
    """Measure both sides and write results/memory_per_edge.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--side", choices=("mace", "evenfield"), help="one side, in this process")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(bytes_per_edge(arguments.side, arguments.channels[0])))
        return
    import tempfile

    import ase.io
    from benchmark_structures import copper

    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.extxyz" for n in (1, 4)]
        for path, count in zip(paths, (1, 4), strict=True):
            ase.io.write(path, copper() * count)
        for channels in arguments.channels:
            row = {"channels": channels}
            for side, python in (("evenfield", sys.executable), ("mace", arguments.peer_python)):
                command = [python, __file__, "--side", side, "--channels", str(channels)]
                text = "\n".join(map(str, paths)) + "\n"
                done = subprocess.run(
                    command, input=text, env=environment, capture_output=True, text=True, check=True
                )
                row[side] = json.loads(done.stdout.splitlines()[-1])
            row["ratio"] = row["evenfield"] / row["mace"]
            print(row, flush=True)
            rows.append(row)
    command = "python benchmarks/memory_per_edge.py --peer-python PEER/bin/python"
    RESULT.write_text(json.dumps({"command": command, "bytes_per_edge": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
