#!/usr/bin/env bash
# Everything that a short loan of a GPU is for, on a machine without internet:
#   benchmarks/gpu_day.sh OUT [MINUTES]
#
# Python is that of PYTHON (python3), whose torch sees the GPU. What it lacks comes as wheels from the folder
# WHEELS, which are installed beside it and not into it. On a machine with internet, the same Python and the same
# kind of processor, gather them with
#   benchmarks/gpu_day.sh --wheels WHEELS [PACKAGE ...]
#
# The figures go into OUT/gpu.json, and the tests that need no second process into OUT/tests.txt. With the time
# that is left, the run of RUN is continued on the data set DATA, where both are given, and RUN is copied to OUT.
# Nothing is lost when it is cut off: the same command goes on.
set -euo pipefail
python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)

# what images with torch lack; their versions are pinned by what CI has tested
usual=(vesin deepspeed datasets ase typer)

if [ "${1:-}" = "--wheels" ]; then
  folder=$2
  shift 2
  mkdir -p "$folder"
  # one wheel each, without what they need in turn: on the other machine this script names what is missing
  "$python" -m pip wheel -q --no-deps -w "$folder" -c "$here/constraints-cpu.txt" "${@:-${usual[@]}}"
  du -sh "$folder"
  exit
fi

out=$1 minutes=${2:-9}
mkdir -p "$out"
started=$SECONDS
left() { echo $((minutes * 60 - (SECONDS - started))); }

work=$(mktemp -d)
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
fi
# the root folders under their import name, as an installation maps them
mkdir "$work/link"
ln -s "$here" "$work/link/evenfield"
export PYTHONPATH="$work/link:$work/site:$here/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

missing=$("$python" - <<'P'
import importlib
import re
import tomllib
import os
here = os.path.realpath(os.environ["PYTHONPATH"].split(":")[0] + "/evenfield")
with open(f"{here}/pyproject.toml", "rb") as file:
    listed = tomllib.load(file)["project"]["dependencies"]
names = {"torch-geometric": "torch_geometric", "huggingface_hub": "huggingface_hub", "pyyaml": "yaml",
         "markdown-it-py": "markdown_it"}
for line in listed:
    name = re.match(r"[\w-]+", line).group()
    try:
        importlib.import_module(names.get(name, name.replace("-", "_")))
    except Exception as error:
        print(f"missing: {name} ({type(error).__name__}: {error})")
P
)
# packages say things of their own when they are imported
missing=$(grep '^missing: ' <<< "$missing" || true)
if [ -n "$missing" ]; then
  echo "$missing"
  echo "bring their wheels in WHEELS"
  exit 1
fi

"$python" -c 'import torch; print("GPU:", torch.cuda.get_device_name() if torch.cuda.is_available() else "none, so this measures the CPU")'
share=$(( $(left) * 2 / 3 / 60 ))
"$python" -W ignore "$here/benchmarks/gpu_measurements.py" "$out/gpu.json" --minutes "$share" ${QUICK:+--quick}

if [ "$(left)" -gt 150 ] && "$python" -c "import pytest" 2>/dev/null; then
  timeout 120 "$python" -m pytest -q -p no:cacheprovider "$here/tests/model_zoo/potential" > "$out/tests.txt" 2>&1 || true
  tail -3 "$out/tests.txt"
fi

if [ -n "${RUN:-}" ] && [ -n "${DATA:-}" ] && [ "$(left)" -gt 60 ]; then
  # SIGTERM lets a training save its step; a minute is left to copy it
  timeout --signal=TERM --kill-after=45 $(( $(left) - 50 )) \
    "$python" -m evenfield.cli pretrain --recipe "$RUN/config.yaml" data="$DATA" out="$RUN" --resume auto || true
  cp -r "$RUN" "$out/run"
fi
