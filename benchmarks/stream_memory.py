"""Peak memory of a process that streams, against the number of structures in the data set.

    python benchmarks/stream_memory.py [--sizes 10000 100000 1000000]

Makes the sets in a temporary folder (structures of 5 to 10 atoms, 0.3 kB each). Each is read by a process of its own:
weights are fitted, then 40 windows from all over an epoch are decoded. Writes results/stream_memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.progress import track
from stream_throughput import open_stream, synthetic

from evenfield.data_pipelines.convert import ConvertConfig, write_data_set


WINDOWS = 40


def read(folder: Path) -> None:
    """Stream, then print structures seen and peak memory in MiB."""
    stream = open_stream(folder)
    step = max(1, stream.windows_per_epoch // WINDOWS)
    windows = [k * step % stream.windows_per_epoch for k in range(WINDOWS)]
    seen = sum(1 for window in windows for _ in stream.window(window))
    print(json.dumps({"seen": seen, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--read", type=Path, help="the process that reads is started with this")
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    rows = []
    for number in options.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "data"
            made = track(synthetic(number, (5, 10)), f"making {number} structures", total=number)
            write_data_set(made, folder, {"file": "synthetic", "sha256": ""}, ConvertConfig())
            command = [sys.executable, __file__, "--read", str(folder)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"structures": number, **json.loads(answer)})
        print(rows[-1])
    growth = rows[-1]["peak_mib"] / rows[0]["peak_mib"] - 1
    result = {"command": f"python {' '.join(sys.argv)}", "rows": rows, "growth": growth}
    out = Path(__file__).parent / "results" / "stream_memory.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"growth {growth:.1%}; written: {out}")


if __name__ == "__main__":
    main()
