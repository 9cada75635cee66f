"""Is a fine-tuning ever worse than its start? Counts over few-shot curves.

    evenfield finetune curve evenfield-1 TARGET TARGET.json sizes=[4,8,16,32] seeds=[0,1,2,3] \\
        strategies=[refit] scratch_steps=0
    python benchmarks/never_worse.py TARGET.json ...

TARGET is a converted data set; those of results/never_worse.json are fitsnap_ta, zr_h, dnp_Ti,
tial_tutorial and perovskite_leadfree, converted with `--recipe ref_labels split_by=structure
test_share=0.5 valid_share=0.0`.

Each fine-tuning is compared with step 0 on the same draw: the pretrained model with reference
energies refitted, on test structures that no draw contains. Prints, for each file and strategy, how
many fine-tunings there are, how many have forces or energies that are worse by more than 2 %, and
the largest and the median ratio of errors. Writes results/never_worse.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any


RESULT = Path(__file__).parent / "results" / "never_worse.json"
WORSE = 1.02
FIGURES = ("force_mae", "energy_mae_per_atom")
STARTS = ("pretrained", "step0", "scratch")


def ratios(rows: list[dict[str, Any]], strategy: str) -> list[dict[str, Any]]:
    """Of each fine-tuning: its draw, and its errors over those of step 0."""
    start = {
        (row["num_structures"], row["seed"]): row for row in rows if row["strategy"] == "step0"
    }
    found = []
    for row in rows:
        if row["strategy"] != strategy:
            continue
        before = start[row["num_structures"], row["seed"]]
        own = {name: row[name] / before[name] for name in FIGURES if row[name] is not None}
        found.append({"num_structures": row["num_structures"], "seed": row["seed"], **own})
    return found


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("curves", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    total = 0
    num_worse = 0
    for path in options.curves:
        rows = json.loads(path.read_text())["rows"]
        strategies = sorted({row["strategy"] for row in rows} - set(STARTS))
        for strategy in strategies:
            found = ratios(rows, strategy)
            worse = [one for one in found if any(one.get(name, 0) > WORSE for name in FIGURES)]
            summary: dict[str, Any] = {"fine_tunings": len(found), "worse": worse}
            for name in FIGURES:
                values = [one[name] for one in found if name in one]
                summary[f"{name}_ratio"] = [statistics.median(values), max(values)]
            result[f"{path.stem}, {strategy}"] = summary
            total += len(found)
            num_worse += len(worse)
            print(f"{path.stem}, {strategy}: {len(worse)} of {len(found)} worse; {summary}")
    result["all"] = {"fine_tunings": total, "worse": num_worse}
    print(f"{num_worse} of {total} fine-tunings are worse than step 0 by more than 2 %")
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
