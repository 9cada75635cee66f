"""Elements that training never saw: does a start from physical descriptors help?

    python benchmarks/element_left_out.py SOURCE OUT [--elements Se Rh Nd Rb] [--steps 600]
        [--seeds 0 1]

SOURCE is converted twice with the recipe ref_labels: without any structure that holds one of the
elements, to train on, and only those, to test on. Two models a seed differ in nothing but the
vectors that the elements start from: from descriptors, or drawn at random with the same spread. An
element's reference energy cannot be known without data, so energies are not compared. Runs that OUT
has already are not run again. Writes results/element_left_out.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from ase.data import chemical_symbols

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.convert.convert import ConvertConfig, convert
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.store.shards import read_info
from evenfield.model_zoo.evaluation.evaluation import predict, with_a_head
from evenfield.model_zoo.network.embedding import ElementEmbedding
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.run import pretrain


RESULT = Path(__file__).parent / "results" / "element_left_out.json"


def converted(source: Path, folder: Path, *words: str) -> Path:
    """The source as a data set, filtered as the words say."""
    if not (folder / "dataset_info.json").exists():
        convert(
            source,
            folder,
            load_settings(
                ConvertConfig, Path("ref_labels"), ["masks.stress=stress_suspect", *words]
            ),
        )
    return folder


class RandomStart(ElementEmbedding):
    """Vectors drawn at random, with the mean and spread that the descriptors give."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        spread, mean = torch.std_mean(self.weight.detach())
        torch.nn.init.normal_(self.weight, float(mean), float(spread))


def force_errors(model: Path, data: Path, elements: list[str]) -> dict[str, float]:
    """Force MAE on the atoms of each element, and on their neighbours of other elements."""
    potential = model_zoo.load(str(model)).potential
    splits = read_info(data)["num_structures"]
    structures = (s for split in splits if splits[split] for s in iter_structures(data, split))
    found = predict(potential, with_a_head(potential, structures))
    error = np.abs(found.forces[..., 1] - found.forces[..., 0]).mean(1)
    labelled = np.isfinite(error)
    errors = {}
    for symbol in elements:
        own = labelled & (found.atomic_numbers == chemical_symbols.index(symbol))
        errors[symbol] = float(error[own].mean())
    left_out = np.isin(found.atomic_numbers, [chemical_symbols.index(s) for s in elements])
    errors["atoms of these elements"] = float(error[labelled & left_out].mean())
    errors["other atoms beside them"] = float(error[labelled & ~left_out].mean())
    errors["force size of these elements"] = float(
        np.abs(found.forces[labelled & left_out, :, 0]).mean()
    )
    return errors


def main() -> None:
    """Train, test and write results/element_left_out.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--elements", nargs="+", default=["Se", "Rh", "Nd", "Rb"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    listed = f"[{', '.join(options.elements)}]"
    train = converted(options.source, options.out / "without", f"without_elements={listed}")
    test = converted(options.source, options.out / "with", f"with_elements={listed}")
    rows = []
    for seed in options.seeds:
        for start, embedding in (("descriptors", ElementEmbedding), ("random", RandomStart)):
            folder = options.out / f"{start}-{seed}"
            if not (folder / "model" / "manifest.json").is_file():
                words = [
                    f"data={train}",
                    f"out={folder}",
                    f"max_steps={options.steps}",
                    f"seed={seed}",
                ]
                words += [f"stream.seed={seed}", f"evaluate_every={options.steps}"]
                with patch("evenfield.model_zoo.network.gaunt.network.ElementEmbedding", embedding):
                    pretrain(load_settings(PretrainConfig, None, words))
            rows.append(
                {
                    "start": start,
                    "seed": seed,
                    **force_errors(folder / "model", test, options.elements),
                }
            )
            print(rows[-1], flush=True)
    ratios = {}
    for name in [*options.elements, "atoms of these elements", "other atoms beside them"]:
        by_start = {
            s: [row[name] for row in rows if row["start"] == s] for s in ("descriptors", "random")
        }
        ratios[name] = statistics.mean(by_start["descriptors"]) / statistics.mean(
            by_start["random"]
        )
    print("descriptors / random:", {name: round(ratio, 3) for name, ratio in ratios.items()})
    command = (
        f"python benchmarks/element_left_out.py {options.source.name} OUT --steps {options.steps}"
    )
    RESULT.write_text(
        json.dumps({"command": command, "rows": rows, "descriptors_over_random": ratios}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
