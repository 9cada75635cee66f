"""A sparse Gaussian process on the frozen features of a model, beside the model's own posterior.

    python benchmarks/sparse_gaussian_process.py MODEL DATA --out FILE.json [--inducing 300]
        [--steps 500] [--seed 0]

Needs gpytorch (`pip install gpytorch==1.15.2`), which evenfield itself does not. The process is
that of Titsias (AISTATS 2009): squared exponential with a length for each feature, on the mean
features of structures, with inducing points that begin at training structures and are optimised
with everything else. It learns the energies per atom of the training split of DATA, less a ridge
regression on the composition. The record of the model is made from the same split. Both are
calibrated on the validation split and judged on the test split. Processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gpytorch
import numpy as np
import torch
from ase.data import atomic_numbers
from scipy.stats import spearmanr

from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.diagnostics.checks.baselines import Described, described, ridge, standardised
from evenfield.finetune.safety.uncertainty import make_uncertainty, observe
from evenfield.model_zoo import load
from evenfield.model_zoo.uncertainty.conformal import Scores


SPLITS = ("train", "valid", "test")
LEARNING_RATE = 0.05
# Gaussian errors: 90 % lie within so many deviations
GAUSSIAN_90 = 1.645


class SparseProcess(gpytorch.models.ExactGP):
    """Inducing points (M, d) and a squared exponential with d lengths."""

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        likelihood: gpytorch.likelihoods.GaussianLikelihood,
        inducing: torch.Tensor,
    ) -> None:
        super().__init__(inputs, targets, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        exponential = gpytorch.kernels.RBFKernel(ard_num_dims=inputs.shape[1])
        # standardised columns: the distance of two structures grows with the root of their number
        exponential.lengthscale = inputs.shape[1] ** 0.5
        self.covar_module = gpytorch.kernels.InducingPointKernel(
            gpytorch.kernels.ScaleKernel(exponential), inducing.clone(), likelihood
        )

    def forward(self, inputs: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        """Inputs (S, d) -> the prior."""
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(inputs), self.covar_module(inputs)
        )


def main() -> None:
    """Write one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("data", type=Path, help="folder of a converted data set")
    parser.add_argument("--inducing", type=int, default=300)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    model = load(arguments.model)
    level = model.level_to_use()
    known = {atomic_numbers[symbol] for symbol in model.record.trained_symbols(level)}
    structures = {split: chosen(arguments.data, split, level, known) for split in SPLITS}
    started = time.process_time()
    facts = {split: described(own, model.potential, split) for split, own in structures.items()}
    seconds_of_features = time.process_time() - started

    process = of_process(facts, arguments.inducing, arguments.steps, arguments.seed)
    own = of_model(model.potential, level, structures, known)
    result = {
        "model": model.reference,
        "level": level,
        "data": arguments.data.name,
        "gpytorch": gpytorch.__version__,
        "structures": {split: len(listed) for split, listed in structures.items()},
        "inducing": arguments.inducing,
        "steps": arguments.steps,
        "seconds of features": round(seconds_of_features, 1),
        "process": process,
        "model and its posterior": own,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def chosen(data: Path, split: str, level: str, known: set[int]) -> list[Structure]:
    """Structures with an energy, of elements that the level has learned."""
    return [
        one
        for one in iter_structures(data, split)
        if one.level_of_theory == level
        and one.energy is not None
        and known.issuperset(one.atomic_numbers.tolist())
    ]


def of_process(
    facts: dict[str, Described], num_inducing: int, steps: int, seed: int
) -> dict[str, float]:
    """Train the process on energies, and judge it."""
    started = time.process_time()
    train = facts["train"]
    mean = train.energy.mean()
    composition = ridge(train.counts, train.energy - mean)
    inputs = {}
    targets = {}
    for split, own in facts.items():
        inputs[split] = torch.as_tensor(standardised(own.features, train.features))
        targets[split] = torch.as_tensor(own.energy - mean - own.counts @ composition)
    unit = targets["train"].std()

    first = np.random.default_rng(seed).permutation(len(train.energy))[:num_inducing]
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    learned = targets["train"] / unit
    process = SparseProcess(inputs["train"], learned, likelihood, inputs["train"][first]).double()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, process)
    optimizer = torch.optim.Adam(process.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -objective(process(inputs["train"]), learned)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    seconds = time.process_time() - started

    started = time.process_time()
    process.eval()
    likelihood.eval()
    errors = {}
    deviations = {}
    with torch.no_grad():
        for split in ("valid", "test"):
            predicted = likelihood(process(inputs[split]))
            errors[split] = ((predicted.mean * unit) - targets[split]).numpy()
            deviations[split] = (predicted.stddev * unit).numpy()
    seconds_to_predict = time.process_time() - started
    found = judged(errors, deviations)
    return found | {
        "loss, first and last": [round(losses[0], 4), round(losses[-1], 4)],
        "seconds to train": round(seconds, 1),
        "seconds to predict": round(seconds_to_predict, 2),
        # what the spread of the process says about the errors of the network
        "rank correlation with errors of the model": correlation(
            deviations["test"], facts["test"].model - facts["test"].energy
        ),
    }


def of_model(
    potential, level: str, structures: dict[str, list[Structure]], known: set[int]
) -> dict[str, float]:
    """The energies of the model itself, with the deviation of its posterior."""
    started = time.process_time()
    # in random order, so that a part of them is like all
    order = np.random.default_rng(0).permutation(len(structures["train"]))
    train = [structures["train"][k] for k in order]
    own = make_uncertainty(potential, level, train, structures["valid"], known=known, split="valid")
    seconds = time.process_time() - started
    started = time.process_time()
    errors = {}
    deviations = {}
    for split in ("valid", "test"):
        seen = observe(potential, own, structures[split])
        per_atom = np.bincount(seen.structure_index, minlength=len(seen.groups))
        errors[split] = seen.energy_error / per_atom
        # the scale of the record is that of the validation split, and is put in below
        deviations[split] = seen.energy_deviation / own.energy_scale / per_atom
    seconds_to_predict = time.process_time() - started
    return judged(errors, deviations) | {
        "seconds to make the record": round(seconds, 1),
        "seconds to predict, network and forces included": round(seconds_to_predict, 2),
    }


def judged(errors: dict[str, np.ndarray], deviations: dict[str, np.ndarray]) -> dict[str, float]:
    """Errors (S,) and deviations (S,) in eV/atom of both splits -> figures of the test split."""
    error = np.abs(errors["test"])
    found = {
        "energy MAE (meV/atom)": round(1000 * float(error.mean()), 1),
        "rank correlation of deviation and error": correlation(deviations["test"], error),
        "covered by 1.645 deviations as they are": round(
            float((error <= GAUSSIAN_90 * deviations["test"]).mean()), 4
        ),
    }
    scores = Scores.of(np.abs(errors["valid"]) / deviations["valid"], len(errors["valid"]))
    for coverage in (0.9, 0.99):
        radius = scores.quantile(coverage) * deviations["test"]
        percent = f"{100 * coverage:g} %"
        found[f"covered by {percent} radii"] = round(float((error <= radius).mean()), 4)
        found[f"median {percent} radius (meV/atom)"] = round(1000 * float(np.median(radius)), 1)
    return found


def correlation(deviation: np.ndarray, error: np.ndarray) -> float:
    """Rank correlation with the size of the errors."""
    return round(float(spearmanr(deviation, np.abs(error)).statistic), 4)


if __name__ == "__main__":
    main()
