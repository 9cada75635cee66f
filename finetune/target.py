"""What a model is fine-tuned to: the structures of one level of theory, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from ..core.settings import load_settings
from ..data_pipelines.convert.convert import ConvertConfig, convert
from ..data_pipelines.sources.config import SourceConfig
from ..data_pipelines.store.blocks import iter_structures
from ..data_pipelines.store.shards import read_info
from ..data_pipelines.structure import Structure
from ..model_zoo.package.record import TrainingData


OTHERS = ("valid", "test")
# structures; of fewer none is held out, since one or two say little and each is needed to learn from. The refit leaves
# folds out itself, so it can do without for longer (docs/decisions/0009).
LEAST, LEAST_OF_REFIT = 8, 32
ENOUGH_GROUPS = 5  # to hold whole ones out
COMMON_RECIPE = Path("ref_labels")  # labels in REF_* columns, as MACE's files have them


@dataclass(frozen=True)
class Target:
    """Structures to fit, to choose by and to report errors on; and where they come from."""

    level_of_theory: str
    train: list[Structure]
    valid: list[Structure]
    test: list[Structure]
    source: TrainingData

    @property
    def judged(self) -> tuple[str, list[Structure]]:
        """The structures that errors are reported on: the test split, else what was held out, else all."""
        return next((name, s) for name in ("test", "valid", "train") if (s := getattr(self, name)))


def open_target(
    data: Path | str,
    *,
    num_structures: int | None = None,
    seed: int = 0,
    valid_share: float = 0.2,
    source: SourceConfig | None = None,
    work: Path | None = None,
    strategy: str = "auto",
) -> Target:
    """The target in a folder of a converted data set, or in any file, which is converted into the folder `work`.

    A validation split is made of the training structures where the data have none and there are enough for the
    strategy. Raises ValueError when the data
    mix levels of theory or have too few structures.
    """
    folder = (
        Path(data)
        if (Path(data) / "dataset_info.json").is_file()
        else _converted(data, source, work)
    )
    info = read_info(folder)
    levels = info["levels_of_theory"]
    if len(levels) != 1:
        raise ValueError(
            f"{data}: mixes levels of theory ({', '.join(levels)}): fine-tune on one at a time"
        )
    others = {
        split: list(iter_structures(folder, split)) if info["num_structures"][split] else []
        for split in OTHERS
    }
    drawn, valid = draw(folder, num_structures, seed), others["valid"]
    least = LEAST_OF_REFIT if strategy == "refit" else LEAST
    train, held_out = (drawn, valid) if valid else hold_out(drawn, valid_share, seed, least)
    about = TrainingData(
        name=info["source"]["file"],
        sha256=info["source"]["sha256"],
        licence=info["licence"],
        description=info["description"],
        num_structures=len(drawn),
    )
    return Target(levels[0], train, held_out, others["test"], about)


def draw(folder: Path | str, num_structures: int | None, seed: int) -> list[Structure]:
    """Training structures of a data set: `num_structures` of them drawn by seed, nested as the number grows."""
    structures = list(iter_structures(folder, "train"))
    if num_structures is None:
        return structures
    if num_structures > len(structures):
        raise ValueError(
            f"{folder}: has {len(structures)} training structures, {num_structures} were asked for"
        )
    order = np.random.default_rng(seed).permutation(len(structures))
    return [structures[k] for k in order[:num_structures]]


def hold_out(
    structures: list[Structure], share: float, seed: int, least: int = LEAST
) -> tuple[list[Structure], list[Structure]]:
    """Training and validation structures; groups stay together where there are enough, copies always."""
    if len(structures) < least or share == 0:
        return structures, []
    groups: dict[str, list[Structure]] = {}
    for s in structures:
        groups.setdefault(s.group, []).append(s)
    units = list(groups.values()) if len(groups) >= ENOUGH_GROUPS else alike(structures)
    if len(units) < 2:
        return structures, []
    wanted = max(1, round(share * len(structures)))
    chosen: list[int] = []
    for k in np.random.default_rng(seed).permutation(len(units)):
        if sum(len(units[c]) for c in chosen) + len(units[k]) <= wanted:
            chosen.append(int(k))
    chosen = chosen or [int(np.argmin([len(unit) for unit in units]))]
    parts = [
        [s for k, unit in enumerate(units) if (k in chosen) is held for s in unit]
        for held in (False, True)
    ]
    return parts[0], parts[1]


def alike(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Structures with their exact copies, to 0.001 A, in order of the first of each."""
    groups: dict[bytes, list[Structure]] = {}
    for s in structures:
        key = s.atomic_numbers.astype(np.int64).tobytes()
        key += np.rint(1e3 * np.vstack([s.positions, s.cell])).astype(np.int64).tobytes()
        groups.setdefault(key, []).append(s)
    return list(groups.values())


def _converted(data: Path | str, source: SourceConfig | None, work: Path | None) -> Path:
    """A file or other source, converted; labels in REF_* columns are found without being told."""
    if work is None:
        raise ValueError(
            f"{data}: is no folder of a converted data set: convert it, or name a folder to convert it to"
        )
    settings: dict[str, Any] = (source or SourceConfig()).model_dump(exclude_unset=True)
    if not settings.get("columns") and (found := _reference_columns(data)):
        level = settings.get("level_of_theory")
        base = load_settings(ConvertConfig, COMMON_RECIPE).model_dump(exclude_unset=True)
        base["columns"] = {
            name: column for name, column in base["columns"].items() if column in found
        }
        base["units"] = {
            name: unit for name, unit in base["units"].items() if name in base["columns"]
        }
        if level or base["columns"].get("level_of_theory") is None:
            base["columns"].pop("level_of_theory", None)
        settings = base | settings
    if "level_of_theory" not in settings and "level_of_theory" not in settings.get("columns", {}):
        # a level of its own is never wrong: it gets a head of its own, with free E0
        settings["level_of_theory"] = Path(data).name.split(".")[0]
    convert(str(data), work, ConvertConfig(**settings, valid_share=0.0, test_share=0.0), workers=1)
    return work


def _reference_columns(data: Path | str) -> set[str]:
    """Names of REF_* labels and of the level's column in the first frame of a file, when ASE finds none itself."""
    if not Path(data).is_file():
        return set()
    try:
        atoms: Any = ase.io.read(data, 0)
    except Exception:  # whatever is wrong with the file, the conversion says it better
        return set()
    names = {*atoms.info, *atoms.arrays}
    return names if atoms.calc is None and "REF_energy" in names else set()
