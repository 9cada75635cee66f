"""Fine-tuning by refit and its yardstick: pretrained, step 0, refit and from scratch, on the same structures."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from pydantic import Field
from rich.progress import track

from ..data_pipelines.blocks import iter_structures
from ..data_pipelines.convert import ConvertConfig, write_data_set
from ..data_pipelines.schema import Structure
from ..data_pipelines.settings import Settings
from ..data_pipelines.shards import read_info, write_atomically
from ..model_zoo.hub import LoadedModel
from ..model_zoo.package import ModelRecord, TrainingData, save_model
from ..model_zoo.potential import Potential
from ..pretrain.config import PretrainConfig
from ..pretrain.evaluation import predict, summarise
from ..pretrain.run import pretrain
from .heads import with_head
from .radii import refit_radii
from .reference_energies import ReferenceReport, refit_reference_energies
from .refit import RefitConfig, RefitReport, refit_readout


class FineTuneConfig(Settings):
    """What is fitted, and how."""

    num_structures: int | None = Field(default=None, gt=0, description="training structures drawn; all when not given")
    seed: int = 0
    refit: RefitConfig = RefitConfig()


class FewShotConfig(Settings):
    """The ladder of structure counts; `scratch_steps` optimizer steps from scratch at each, 0 for none."""

    sizes: list[int] = Field(default=[4, 8, 16, 32], min_length=1)
    seeds: list[int] = Field(default=[0, 1], min_length=1)
    scratch_steps: int = Field(default=400, ge=0)
    refit: RefitConfig = RefitConfig()


@dataclass(frozen=True)
class FineTuned:
    """A refitted potential with its errors on the test split before, at step 0 and after (evaluation.json's form)."""

    potential: Potential
    level_of_theory: str
    structures: list[Structure]
    evaluations: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    reference: ReferenceReport
    refit: RefitReport


def draw(data: Path | str, num_structures: int | None, seed: int) -> list[Structure]:
    """Training structures of a data set: `num_structures` of them drawn by seed, nested as the number grows."""
    structures = list(iter_structures(data, "train"))
    if num_structures is None:
        return structures
    if num_structures > len(structures):
        raise ValueError(f"{data}: has {len(structures)} training structures, {num_structures} were asked for")
    order = np.random.default_rng(seed).permutation(len(structures))
    return [structures[k] for k in order[:num_structures]]


def finetune(model: LoadedModel, data: Path | str, config: FineTuneConfig) -> FineTuned:
    """Refit E0, then core radii, then readout and E0 together, on `data`'s training split.

    Errors are those on its test split. Step 0, with E0 refitted, is never worse on the training structures. Raises
    ValueError when the data mix levels of theory.
    """
    level = _one_level(data)
    structures = draw(data, config.num_structures, config.seed)
    test = list(iter_structures(data, "test"))
    potential = with_head(model.potential, level)
    head = potential.config.levels_of_theory.index(level)
    evaluations, seconds = {"pretrained": summarise(predict(potential, test), "test")}, {"pretrained": 0.0}
    started = time.perf_counter()
    known, known_e0 = _known_elements(model, level)
    reference = refit_reference_energies(potential, head, structures, known_e0)
    seconds["step0"] = time.perf_counter() - started
    evaluations["step0"] = summarise(predict(potential, test), "test")
    started = time.perf_counter()
    if refit_radii(potential, head, structures):
        refit_reference_energies(potential, head, structures, known_e0)
    report = refit_readout(potential, head, structures, known=known, known_e0=known_e0, config=config.refit)
    seconds["refit"] = seconds["step0"] + time.perf_counter() - started
    evaluations["refit"] = summarise(predict(potential, test), "test")
    return FineTuned(potential, level, structures, evaluations, seconds, reference, report)


def save_finetuned(result: FineTuned, model: LoadedModel, data: Path | str, out: Path, licence: str | None) -> Path:
    """Write the refitted model with a record that names its base and both data sets."""
    info, base = read_info(data), model.record
    seen = {symbol for s in result.structures for symbol in s.to_atoms().get_chemical_symbols()}
    elements = dict(base.elements)
    elements[result.level_of_theory] = sorted({*elements.get(result.level_of_theory, []), *seen})
    counts = dict(base.train_counts)
    for symbol in seen:
        counts[symbol] = counts.get(symbol, 0) + sum(symbol in s.to_atoms().symbols for s in result.structures)
    own_data = TrainingData(
        name=info["source"]["file"],
        sha256=info["source"]["sha256"],
        licence=info["licence"],
        description=info["description"],
        num_structures=len(result.structures),
    )
    record = ModelRecord(
        name=out.name,
        licence=licence or base.licence,
        elements=elements,
        train_counts=counts,
        training_data=[*base.training_data, own_data],
        training={**base.training, "refit": asdict(result.refit)},
        versions=base.versions,
        base_model=model.reference,
    )
    return save_model(out, result.potential, record, result.evaluations["refit"])


def few_shot_curve(
    model: LoadedModel, data: Path | str, out: Path, config: FewShotConfig, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Errors against the number of structures for refit and from scratch; writes `out` (fewshot.json).

    Rows that the file has already, for the same model, data and settings, are not computed again, also when sizes or
    seeds were added. Raises ValueError when the data have fewer structures than the largest size.
    """
    origin = {
        "model": model.reference,
        "data": read_info(data)["source"],
        "config": config.model_dump(mode="json", exclude={"sizes", "seeds"}),
    }
    draw(data, max(config.sizes), seed=0)  # too many are refused before anything is computed
    content = json.loads(out.read_text()) if out.is_file() else {}
    rows = content.get("rows", []) if content.get("origin") == origin else []
    done = {(row["num_structures"], row["seed"]) for row in rows}
    todo = [(n, seed) for n in config.sizes for seed in config.seeds if (n, seed) not in done]
    force_rms = content.get("force_rms") if done else None
    for num_structures, seed in track(todo, "few-shot curve", transient=True):
        settings = FineTuneConfig(num_structures=num_structures, seed=seed, refit=config.refit)
        result = finetune(model, data, settings)
        errors, seconds = dict(result.evaluations), dict(result.seconds)
        force_rms = errors["refit"]["force_rms"]
        if config.scratch_steps:
            errors["scratch"], seconds["scratch"] = _from_scratch(
                model, data, result.structures, config.scratch_steps, seed
            )
        for strategy, evaluation in errors.items():
            row = {"num_structures": num_structures, "strategy": strategy, "seed": seed}
            row |= {key: evaluation[key] for key in ("force_mae", "energy_mae_per_atom")}
            rows.append(row | {"seconds": round(seconds[strategy], 2)})
        say(f"{num_structures} structures, seed {seed}: " + _line(errors))
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"target": Path(data).name, "force_rms": force_rms, "origin": origin, "rows": rows}
        write_atomically(out, json.dumps(content, indent=1))
    return content


def _line(errors: dict[str, dict[str, Any]]) -> str:
    return "; ".join(
        f"{name} {1000 * e['energy_mae_per_atom']:.1f} meV/atom {e['force_mae']:.3f} eV/A" for name, e in errors.items()
    )


def _from_scratch(
    model: LoadedModel, data: Path | str, structures: list[Structure], steps: int, seed: int
) -> tuple[dict[str, Any], float]:
    """The pretrained model's own recipe on the few structures alone: test errors and seconds."""
    recipe = dict(model.record.training.get("config", {}))
    recipe |= {
        "max_steps": steps,
        "evaluate_every": steps + 1,
        "checkpoints": {"every": steps + 1},
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        parts = [replace(s, split="train") for s in structures]
        parts += [replace(s, split="test") for s in iter_structures(data, "test")]
        write_data_set(parts, Path(folder) / "data", {"file": "few structures", "sha256": ""}, ConvertConfig())
        config = PretrainConfig.model_validate(recipe | {"data": f"{folder}/data", "out": f"{folder}/scratch"})
        started = time.perf_counter()
        trained = pretrain(config, quiet=True)
        seconds = time.perf_counter() - started
        if trained is None:  # a signal stopped it
            raise KeyboardInterrupt
        return json.loads((trained / "evaluation.json").read_text()), seconds


def _known_elements(model: LoadedModel, level: str) -> tuple[set[int], set[int]]:
    """Atomic numbers whose readout the head has learned, and those whose E0 it knows.

    A new level of theory takes over the readout of the model's first head, but no E0 carries over.
    """
    levels, elements = model.potential.config.levels_of_theory, model.record.elements
    source = elements.get(level if level in levels else levels[0], [])
    known = {chemical_symbols.index(symbol) for symbol in source}
    return known, known if level in levels else set()


def _one_level(data: Path | str) -> str:
    levels = read_info(data)["levels_of_theory"]
    if len(levels) != 1:
        raise ValueError(f"{data}: mixes levels of theory ({', '.join(levels)}): fine-tune on one at a time")
    return levels[0]
