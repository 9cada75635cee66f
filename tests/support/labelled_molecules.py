"""Small molecules whose charges are known, and a model that was never trained to give them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield import model_zoo
from evenfield.model_zoo import ModelRecord, Potential, PotentialConfig
from evenfield.model_zoo.heads.description import HeadDescription
from evenfield.model_zoo.heads.expansion import drawn_expansion
from evenfield.model_zoo.heads.features import carried_features
from evenfield.model_zoo.heads.head import Head
from evenfield.model_zoo.heads.record import with_network
from evenfield.model_zoo.heads.rows import has_charges_or_trace, num_columns, num_mixtures
from evenfield.model_zoo.package.record import TrainingData


NAMES = ("H2O", "NH3", "CH4", "CO2", "CH3OH", "HCN", "C2H2", "C2H4", "H2CO", "N2", "CO", "H2O2")
SYMBOLS = ["H", "C", "N", "O"]


# two layers and degrees up to 2, so that there are vectors of all sorts, and tensors
ROTATING = {"l_max": 2, "num_layers": 2}


def molecular_model(folder: Path, seed: int = 0, **network: object) -> Path:
    """A float64 model with random weights that says to know H, C, N and O."""
    torch.manual_seed(seed)
    sizes = {"channels": 4, "l_max": 1, "num_layers": 1, "radial_hidden": 8} | network
    config = PotentialConfig(cutoff=3.0, readout_size=8, levels_of_theory=["PBE"], **sizes)
    data = TrainingData(name="organic", sha256="0" * 64, licence="CC0-1.0", num_structures=1)
    record = ModelRecord(
        name="molecules", licence="CC0-1.0", elements={"PBE": SYMBOLS}, training_data=[data]
    )
    return model_zoo.save_model(folder, Potential(config).double(), record)


def molecules(copies: int = 4, seed: int = 0) -> list[Atoms]:
    """Each of `NAMES` some times, rattled by 0.05 A and turned at random."""
    rng = np.random.default_rng(seed)
    frames = []
    for name in NAMES:
        for _ in range(copies):
            known = molecule(name)
            atoms = Atoms(known.symbols, known.positions + rng.normal(0, 0.05, (len(known), 3)))
            atoms.rotate(rng.uniform(0, 360), rng.normal(size=3))
            atoms.info["level_of_theory"] = "planted"
            frames.append(atoms)
    return frames


# of a head that no fit has made
FACTS: dict[str, Any] = {
    "level_of_theory": "planted",
    "data": "mine.extxyz",
    "sha256": "0" * 64,
    "num_structures": 10,
    "num_held_out": 2,
    "split": "composition",
    "elements": SYMBOLS,
    "regularisation": 0.0,
    "errors": {"mae": 0.25},
    "guess": {"mae": 0.5},
}


def planted_head(kind: str, num_features: int, *, seed: int = 1, **facts: object) -> Head:
    """A head with random weights, as a fit would give it."""
    rng = np.random.default_rng(seed)
    facts = {"unit": "e*A" if kind == "dipole" else "e", "features": "network"} | facts
    about = HeadDescription(
        name=facts.pop("name", kind),
        kind=kind,
        **FACTS,
        **facts,
    )
    if about.features == "equivariant":
        raise ValueError("use rotating_head")
    weight = rng.normal(size=(about.num_outputs, num_features))
    bias = rng.normal(size=(about.num_outputs, len(SYMBOLS)))
    spread: dict[str, np.ndarray] = {}
    if about.spread:
        spread["spread_weight"] = rng.normal(size=num_features)
        spread["spread_bias"] = rng.normal(size=len(SYMBOLS))
    return Head(about, weight, bias - bias.mean(axis=1, keepdims=True), **spread)


def rotating_head(kind: str, potential: Potential, *, seed: int = 1, **facts: object) -> Head:
    """A head of equivariant features with random weights and four random functions."""
    rng = np.random.default_rng(seed)
    about = HeadDescription(
        name=facts.pop("name", kind),
        kind=kind,
        unit=facts.pop("unit", "D"),
        features="equivariant",
        num_functions=4,
        **FACTS,
        **facts,
    )
    expansion = drawn_expansion(
        list(carried_features(potential, molecules(copies=1))),
        num_elements=len(SYMBOLS),
        num_functions=about.num_functions,
        num_mixtures=num_mixtures(kind),
        seed=seed,
    )
    sizes = (potential.backbone.num_features, *potential.backbone.num_carried)
    weight = rng.normal(size=(1, sum(num_columns(kind, sizes, about.num_functions))))
    bias = rng.normal(size=(1, len(SYMBOLS))) * has_charges_or_trace(kind)
    bias = bias - bias.mean() * (kind == "dipole")
    if not about.spread:
        return Head(about, weight, bias, expansion)
    of_spread = (rng.normal(size=sizes[0]), rng.normal(size=len(SYMBOLS)))
    return Head(about, weight, bias, expansion, *of_spread)


def of_its_own_network(head: Head, potential: Potential) -> Head:
    """The head with another network, as a training would give it one."""
    torch.manual_seed(11)
    weights = {}
    for name, weight in potential.backbone.state_dict().items():
        weights[name] = weight
        if weight.is_floating_point():
            weights[name] = (weight + 0.02 * torch.randn_like(weight)).float()
    about = head.description.model_copy(update={"trained_steps": 5})
    return dataclasses.replace(head, description=about, own=with_network(potential, weights))


def heads_of_all_kinds(potential: Potential) -> dict[str, Head]:
    """A head of each kind with random weights, and some with a sum, a spread or silent elements.

    Two of them have a network of their own.
    """
    size = potential.backbone.num_features
    energies = {"unit": "eV/atom", "spread": True}
    heads = [
        planted_head("charges", size, name="charges"),
        planted_head("scalar", size, seed=2, name="gap", **energies),
        planted_head(
            "scalar",
            8,
            seed=3,
            name="volume",
            unit="A^3",
            extensive=True,
            features="readout",
            spread=True,
        ),
        planted_head(
            "class",
            size,
            seed=4,
            name="phase",
            unit="probability",
            classes=["solid", "liquid", "gas"],
        ),
        planted_head(
            "atom_scalar",
            size,
            seed=5,
            name="moment",
            unit="muB",
            spread=True,
            silent_elements=["C", "O"],
        ),
        planted_head("states", size, seed=6, name="levels", unit="eV", num_states=3),
    ]
    units = {"dipole": "e*A", "polarizability": "e*A^2/V", "forces": "eV/A"}
    for kind in (
        "dipole",
        "vector",
        "tensor",
        "polarizability",
        "pseudoscalar",
        "atom_vector",
        "atom_tensor",
        "forces",
    ):
        name = "direct_forces" if kind == "forces" else kind
        has_spread = kind in ("dipole", "atom_tensor")
        unit = units.get(kind, "A")
        head = rotating_head(kind, potential, name=name, unit=unit, spread=has_spread)
        if kind in ("tensor", "forces"):
            head = of_its_own_network(head, potential)
        heads.append(head)
    heads.append(
        rotating_head("pseudoscalar", potential, seed=7, name="hand", unit="sign", extensive=True)
    )
    return {head.description.name: head for head in heads}


def write_labelled(path: Path, frames: list[Atoms], labels: list[dict[str, object]]) -> Path:
    """Write structures with entries of their calculator's results, or of their info."""
    for atoms, own in zip(frames, labels, strict=True):
        results = {name: own[name] for name in ("charges", "dipole") if name in own}
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info |= {name: value for name, value in own.items() if name not in results}
    ase.io.write(path, frames)
    return path
