#!/usr/bin/env bash
# The whole walk on real DFT data, from the shell:
#   benchmarks/real_walk.sh DATA OUT [STEPS]
# DATA holds multi_element_longtail.extxyz.gz (85 elements, PBE, its own split) and the sets to fine-tune on; the
# figures end in OUT/figures.json.  Interrupted, it goes on where it was.
set -euo pipefail
data=$1 out=$2 steps=${3:-5000}
recipe=$(dirname "$0")/../data_pipelines/recipes/ref_labels.yaml
mkdir -p "$out"

evenfield data convert "$data/multi_element_longtail.extxyz.gz" "$out/longtail" --recipe "$recipe" \
  masks.stress=stress_suspect \
  licence="see the sources" description="85 elements, PBE, MP settings"
resume=""; [ -d "$out/pretrained/checkpoints" ] && resume="--resume auto"
[ -e "$out/pretrained/model/manifest.json" ] || evenfield pretrain $resume data="$out/longtail" \
  out="$out/pretrained" licence=Apache-2.0 max_steps="$steps" evaluate_every=1000 checkpoints.every=500 \
  stream.weights.beta=0.3

for set in fitsnap_ta zr_h dnp_Ti; do
  evenfield data convert "$data/$set.extxyz.gz" "$out/$set" --recipe "$recipe" split_by=structure \
    test_share=0.5 valid_share=0.0
  evenfield finetune curve "$out/pretrained/model" "$out/$set" "$out/$set.json" sizes=[4,16] seeds=[0,1] \
    scratch_steps=400
done

evenfield finetune "$out/pretrained/model" "$out/fitsnap_ta" "$out/tantalum" num_structures=16 strategy=refit
evenfield hub publish "$out/tantalum" real/tantalum --folder-hub "$out/hub" --allow-failed
python - "$out/tantalum.extxyz" <<'P'
import sys
import ase.io
from ase.build import bulk
ase.io.write(sys.argv[1], bulk("Ta", cubic=True) * (3, 3, 3))
P
evenfield simulate real/tantalum "$out/tantalum.extxyz" "$out/dynamics" steps=200 --folder-hub "$out/hub" \
  --level-of-theory fitsnap_ta
evenfield report "$out/report" pretrained="$out/pretrained" --title "evenfield on real DFT data" \
  --fewshot "$out/fitsnap_ta.json" --model-card "$out/pretrained/model/README.md"
python - "$out" > "$out/figures.json" <<'P'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
read = lambda name: json.loads((out / name).read_text())
errors = {key: value for key, value in read("pretrained/evaluation.json").items() if not isinstance(value, dict)}
curves = {name: read(f"{name}.json") for name in ("fitsnap_ta", "zr_h", "dnp_Ti")}
rows = {name: [{**row, "force_rms": curve["force_rms"]} for row in curve["rows"]] for name, curve in curves.items()}
print(json.dumps({"pretrained": errors, "refits": rows, "dynamics": read("dynamics/dynamics.json")}, indent=1))
P
