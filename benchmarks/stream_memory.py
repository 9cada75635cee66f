"""Peak memory of a process that streams, against the number of structures in the data set.

    python benchmarks/stream_memory.py

Makes a set of 10,240 structures of 20 to 80 atoms in a temporary folder, and sets 10 and 100 times
as large whose further shards are links to its own. Each is read by a process of its own: weights
are fitted, then 80 windows from all over an epoch are decoded. Writes results/stream_memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.progress import track
from stream_throughput import open_stream, synthetic

from evenfield.data_pipelines.convert.convert import ConvertConfig, write_data_set
from evenfield.data_pipelines.store.shards import write_info


NUMBER = 10_240
WINDOWS = 80


def read(folder: Path) -> None:
    """Stream, then print structures seen and peak memory in MiB."""
    stream = open_stream(folder)
    step = max(1, stream.windows_per_epoch // WINDOWS)
    windows = [k * step % stream.windows_per_epoch for k in range(WINDOWS)]
    seen = sum(1 for window in windows for _ in stream.window(window))
    stream.state()
    # not getrusage: its maximum is inherited from the process that started this one
    peak = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(json.dumps({"seen": seen, "peak_mib": int(peak.split()[1]) / 1024}))


def enlarge(folder: Path, out: Path, factor: int) -> Path:
    """A data set with `factor` times the shards, links to those of `folder`."""
    out.mkdir()
    info = json.loads((folder / "dataset_info.json").read_text())
    shards = {}
    for copy in range(factor):
        for index, (name, entry) in enumerate(sorted(info["shards"].items())):
            shards[f"train-{copy * len(info['shards']) + index:05d}.parquet"] = entry
            (out / f"train-{copy * len(info['shards']) + index:05d}.parquet").hardlink_to(
                folder / name
            )
    info["shards"] = shards
    for counts in (info["num_structures"], info["records"]):
        for name in counts:
            counts[name] *= factor
    del info["checksum"]
    write_info(out, info)
    (out / "census.json").write_bytes((folder / "census.json").read_bytes())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--read", type=Path, help="the process that reads is started with this")
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        made = track(synthetic(NUMBER), "making structures", total=NUMBER)
        write_data_set(made, folder, {"file": "synthetic", "sha256": ""}, ConvertConfig())
        for factor in (1, 10, 100):
            data = enlarge(folder, Path(temporary) / f"times-{factor}", factor)
            command = [sys.executable, __file__, "--read", str(data)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"structures": factor * NUMBER, **json.loads(answer)})
            print(rows[-1])
    growth = rows[-1]["peak_mib"] / rows[0]["peak_mib"] - 1
    result = {"command": "python benchmarks/stream_memory.py", "rows": rows, "growth": growth}
    out = Path(__file__).parent / "results" / "stream_memory.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"growth {growth:.1%}; written: {out}")


if __name__ == "__main__":
    main()
