"""The Slurm recipe for conversion, its array tasks run as processes, and a short fuzz run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.shards import read_info


ROOT = Path(__file__).parents[3]


def test_array_tasks_of_the_recipe_then_its_last_job(emt_file, tmp_path):
    bin_folder = Path(sys.executable).parent
    base = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    base |= {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    words = ["bash", str(ROOT / "slurm" / "convert.sbatch"), str(emt_file), str(tmp_path / "out")]
    words.append("columns.level_of_theory=level")
    array = [
        {"SLURM_ARRAY_TASK_ID": k, "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "2"}
        for k in "45"
    ]
    for variables in (*array, {}):
        done = subprocess.run(
            words, env=base | variables, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        finished = (tmp_path / "out" / "dataset_info.json").exists()
        assert finished == (not variables)
        assert ("staged" in done.stdout) == bool(variables)
    assert "118 read = 118 kept" in done.stdout.replace("\n", " ")
    assert "+ 0 filtered + 0 rejected; near duplicates: " in done.stdout.replace("\n", " ")
    convert(
        emt_file, tmp_path / "here", ConvertConfig(columns={"level_of_theory": "level"}), workers=1
    )
    assert read_info(tmp_path / "out")["shards"] == read_info(tmp_path / "here")["shards"]


def test_sixty_mutated_files_crash_nothing():
    spec = importlib.util.spec_from_file_location(
        "fuzz_convert", ROOT / "benchmarks" / "fuzz_convert.py"
    )
    assert spec and spec.loader
    fuzz_convert = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_convert)
    counts = fuzz_convert.fuzz(60)
    outcomes = {name for counter in counts.values() for name in counter}
    assert sum(sum(counter.values()) for counter in counts.values()) == 60
    assert not [name for name in outcomes if name.startswith("CRASH")], json.dumps(counts)
    assert {"success", "quarantine", "ConversionError", "BrokenDataSetError"} <= outcomes
