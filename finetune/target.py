"""The target of a fine-tuning: structures of one level of theory, some of them held out."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.addresses import local_path
from ..core.destination import DestinationError, check_destination, replace_folder
from ..core.errors import EvenfieldError
from ..core.files import copy_folder
from ..data_pipelines.checks.unit_check import UnitError
from ..data_pipelines.convert import staging
from ..data_pipelines.convert.convert import (
    ConvertConfig,
    convert,
    name_of_source,
    settings_of,
)
from ..data_pipelines.convert.finish import NoLabelsError
from ..data_pipelines.convert.near_duplicates import fingerprint
from ..data_pipelines.physics.config import PhysicsConfig
from ..data_pipelines.physics.residual import as_learned
from ..data_pipelines.sources.config import SourceConfig
from ..data_pipelines.sources.label_tally import LabelTally, from_json, how_to_read_labels
from ..data_pipelines.sources.read import source_fingerprint
from ..data_pipelines.sources.records import DisagreeingLabelsError
from ..data_pipelines.store.blocks import iter_structures
from ..data_pipelines.store.folder_files import PARTS, files_of_data_set
from ..data_pipelines.store.shards import INFO, BrokenDataSetError, read_info, stated_info
from ..data_pipelines.structure import BadRecordError, Structure
from ..model_zoo.package.record import TrainingData


# Splits that a converted data set may have next to the training structures.
OTHER_SPLITS = ("valid", "test")
# With fewer structures, none are held out (a strategy may require more, see strategy.py).
FEWEST_TO_HOLD_OUT = 8
# With at least this many groups, whole groups are held out.
ENOUGH_GROUPS = 5
# Positions and cells that agree to this many decimals (in A) are the same.
COPY_DECIMALS = 3
ANOTHER_OUT = (
    "choose another OUT, since --overwrite replaces only data that a fine-tuning has converted"
)
# matches a setting of the source in the remedy of a conversion error, as in `columns.energy=E`
SOURCE_SETTING = re.compile(rf"(?<!source\.)\b(?:{'|'.join(SourceConfig.known_keys())})[.=]")


@dataclass(frozen=True)
class Target:
    """Structures to learn from (train), to choose by (valid) and to report errors on (test)."""

    level_of_theory: str
    train: list[Structure]
    valid: list[Structure]
    test: list[Structure]
    source: TrainingData
    labels: LabelTally = field(default_factory=LabelTally)
    """Which labels the source has, and which of them were read; empty if they were not counted."""
    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    """Field -> column, as set for the conversion."""
    folder: Path | None = None
    """The converted data set; None for structures that were given directly."""
    physics: PhysicsConfig | None = None
    """The physics that was subtracted from the labels; None for full labels."""
    is_file: bool = False
    """Whether the fine-tuning converted the data, so that its own settings can correct them."""

    @cached_property
    def num_different(self) -> int:
        """Number of training and held-out structures, without copies and near copies."""
        return len(different([*self.train, *self.valid]))

    @property
    def setting_prefix(self) -> str:
        """Prefix of the settings of the source: "source." for a file that is converted here.

        For a data set it is empty, because its settings belong to `evenfield data convert`.
        """
        return "source." if self.is_file else ""

    @property
    def how_to_read_again(self) -> str:
        """First words of a remedy that changes how the data are read."""
        if self.is_file:
            return "add"
        return "convert the data again with `evenfield data convert` and"

    def setting_of_unit(self, label: str, unit: str) -> str:
        """Words of a command line that set the unit of a label.

        They also name the column, because a unit belongs to a column.
        """
        prefix = self.setting_prefix
        # by default, a file is read from ASE's columns and from MACE's REF_ columns
        column = self.columns.get(label, [label, f"REF_{label}"] if self.is_file else label)
        if isinstance(column, list):
            column = f"[{','.join(column)}]"
        return f"{prefix}columns.{label}={column} {prefix}units.{label}={unit}"

    @property
    def judged(self) -> tuple[str, list[Structure]]:
        """Name and structures of the split for reported errors: test, else valid, else train."""
        if self.test:
            return "test", self.test
        if self.valid:
            return "valid", self.valid
        return "train", self.train


def open_target(
    data: Path | str,
    *,
    num_structures: int | None = None,
    seed: int = 0,
    valid_share: float = 0.2,
    fewest_to_hold_out: int = FEWEST_TO_HOLD_OUT,
    source: SourceConfig | None = None,
    work: Path | None = None,
    overwrite: bool = False,
    physics: PhysicsConfig | None = None,
) -> Target:
    """Read a target from a converted data set, or from a file.

    data: the folder of a data set, or a file, which is converted into the folder `work`.
    num_structures: training structures to draw, with `seed`; by default all.
    valid_share: share of the training structures to hold out if the data have no validation split.
    fewest_to_hold_out: with fewer training structures, none are held out.
    source: how a file is read.
    overwrite: replace a data set in `work` that was made from other data; without it, such a data
        set is refused.
    physics: the physics of the model, which is subtracted from full labels.

    Raises EvenfieldError if the data mix levels of theory or have too few structures, PhysicsError
    if other physics was subtracted from the labels, and the errors of the conversion.
    """
    folder = local_path(data)
    is_file = not (folder / "dataset_info.json").is_file()
    if is_file:
        folder = _convert_file(data, source, work, overwrite, physics)
    info = read_info(folder)
    levels = info["levels_of_theory"]
    if len(levels) != 1:
        # a data set must be converted again, and a file can be filtered right here
        filters = "source.filters" if is_file else "`evenfield data convert` and filters"
        raise EvenfieldError(
            f"mixes levels of theory ({', '.join(levels)})",
            remedy=f"fine-tune on one at a time, with {filters}={{COLUMN: {levels[0]}}}, where "
            "COLUMN is the one that states the level of theory",
            file=data,
        )

    others: dict[str, list[Structure]] = {}
    for split in OTHER_SPLITS:
        present = info["num_structures"][split] > 0
        found = iter_structures(folder, split) if present else iter(())
        others[split] = list(as_learned(found, folder, physics))

    drawn = list(as_learned(draw(folder, num_structures, seed), folder, physics))
    train = drawn
    valid = others["valid"]
    if not valid:
        train, valid = hold_out(drawn, valid_share, seed, fewest_to_hold_out)

    about = TrainingData.of_data_set(info, len(drawn))
    return Target(
        level_of_theory=levels[0],
        train=train,
        valid=valid,
        test=others["test"],
        source=about,
        labels=from_json(info.get("labels", {})),
        columns=info["source"].get("config", {}).get("columns", {}),
        folder=folder,
        physics=physics,
        is_file=is_file,
    )


def draw(folder: Path | str, num_structures: int | None, seed: int) -> list[Structure]:
    """Training structures of a data set: all, or `num_structures` drawn at random.

    A larger draw contains all smaller draws with the same seed. Raises EvenfieldError if the data
    set has fewer structures.
    """
    structures = list(iter_structures(folder, "train"))
    if num_structures is None:
        return structures
    if num_structures > len(structures):
        raise EvenfieldError(
            f"has {len(structures)} training structures, but {num_structures} were asked for",
            file=folder,
        )
    order = np.random.default_rng(seed).permutation(len(structures))
    return [structures[index] for index in order[:num_structures]]


def hold_out(
    structures: list[Structure],
    share: float,
    seed: int,
    fewest_to_hold_out: int = FEWEST_TO_HOLD_OUT,
) -> tuple[list[Structure], list[Structure]]:
    """Divide structures into training and held-out structures; the second list may be empty.

    share: of the structures to hold out.

    Copies and near copies stay on the same side and count as one structure, because otherwise the
    comparison would be worthless. If there are at least ENOUGH_GROUPS groups, they are not divided
    either. Every element stays in training, and the compositions in training still determine as
    many combinations of E0 as before.
    """
    own = different(structures)
    if len(own) < fewest_to_hold_out or share == 0:
        return structures, []
    units = _joined(_groups(structures), own)
    if len(units) < ENOUGH_GROUPS:
        units = own
    if len(units) < 2:
        return structures, []

    # Every element must stay in training, because otherwise its E0 is never learned. The
    # compositions in training must still distinguish the elements, because held-out structures do
    # not reveal an E0 that nothing determines.
    left = Counter(z for unit in units for z in _elements(unit))
    compositions = _Compositions(structures)

    # Hold out units in random order, as long as they fit into the wanted number.
    wanted = max(1, round(share * len(structures)))
    chosen: set[int] = set()
    num_chosen = 0
    for index in np.random.default_rng(seed).permutation(len(units)):
        elements = _elements(units[index])
        is_last = any(left[z] == 1 for z in elements)
        fits = num_chosen + len(units[index]) <= wanted
        if fits and not is_last and compositions.can_spare(units[index]):
            compositions.remove(units[index])
            chosen.add(int(index))
            num_chosen += len(units[index])
            left.subtract(elements)
    if not chosen:
        # every unit is too large or cannot be spared: hold out the smallest that can be spared
        spare = [
            k
            for k, unit in enumerate(units)
            if all(left[z] > 1 for z in _elements(unit)) and compositions.can_spare(unit)
        ]
        if not spare:
            return structures, []
        chosen = {min(spare, key=lambda index: len(units[index]))}

    train: list[Structure] = []
    held_out: list[Structure] = []
    for index, unit in enumerate(units):
        part = held_out if index in chosen else train
        part.extend(unit)
    return train, held_out


class _Compositions:
    """Compositions of the structures left in training, and the rank of the E0 they determine."""

    def __init__(self, structures: Sequence[Structure]) -> None:
        self.elements = sorted(_elements(structures))
        self.left = Counter(self._of(structure) for structure in structures)
        self.rank = self._rank(self.left)

    def can_spare(self, unit: Sequence[Structure]) -> bool:
        """Whether the remaining structures determine as many combinations of E0 as before."""
        without = self.left - Counter(self._of(structure) for structure in unit)
        # shortcut: often other structures with the same compositions remain
        return len(without) == len(self.left) or self._rank(without) == self.rank

    def remove(self, unit: Sequence[Structure]) -> None:
        """Remove a unit that is held out."""
        self.left -= Counter(self._of(structure) for structure in unit)

    def _of(self, structure: Structure) -> tuple[int, ...]:
        """Number of atoms of each element."""
        return tuple(int((structure.atomic_numbers == z).sum()) for z in self.elements)

    @staticmethod
    def _rank(compositions: Counter[tuple[int, ...]]) -> int:
        if not compositions:
            return 0
        return int(np.linalg.matrix_rank(np.array(list(compositions), dtype=float)))


def _elements(structures: Sequence[Structure]) -> set[int]:
    """Atomic numbers that occur in the structures."""
    return {int(z) for structure in structures for z in structure.elements}


def alike(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Structures grouped with their copies, in the order of the first structure of each group."""
    groups: dict[bytes, list[Structure]] = {}
    for structure in structures:
        geometry = np.vstack([structure.positions, structure.cell])
        rounded = np.rint(10**COPY_DECIMALS * geometry).astype(np.int64)
        numbers = structure.atomic_numbers.astype(np.int64)
        key = numbers.tobytes() + rounded.tobytes()
        groups.setdefault(key, []).append(structure)
    return list(groups.values())


def different(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Structures grouped with their copies and near copies, in the order of each group's first.

    Near copies are what a conversion lists as near duplicates.
    """
    groups: dict[int, list[Structure]] = {}
    for copies in alike(structures):
        groups.setdefault(fingerprint(copies[0]), []).extend(copies)
    return list(groups.values())


def _joined(groups: list[list[Structure]], own: list[list[Structure]]) -> list[list[Structure]]:
    """Join groups that share copies or near copies.

    own: lists of structures with their copies and near copies, as from `different`.
    """
    group_of = {id(s): place for place, group in enumerate(groups) for s in group}
    first = list(range(len(groups)))

    def root(place: int) -> int:
        while first[place] != place:
            place = first[place]
        return place

    for copies in own:
        roots = sorted({root(group_of[id(structure)]) for structure in copies})
        for other in roots[1:]:
            first[other] = roots[0]

    joined: dict[int, list[Structure]] = {}
    for place, group in enumerate(groups):
        joined.setdefault(root(place), []).extend(group)
    return list(joined.values())


def _groups(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Structures by the group that their source names, for example a trajectory."""
    groups: dict[str, list[Structure]] = {}
    for structure in structures:
        groups.setdefault(structure.group, []).append(structure)
    return list(groups.values())


def _convert_file(
    data: Path | str,
    source: SourceConfig | None,
    work: Path | None,
    overwrite: bool,
    physics: PhysicsConfig | None,
) -> Path:
    """Convert a file or another source into `work`, and return `work`.

    Labels in REF_* columns are recognised. Raises DestinationError if `work` holds a data set that
    was made from other bytes, unless `overwrite`, and the errors of the conversion, whose remedies
    are changed to name settings of a fine-tuning.
    """
    if work is None:
        raise EvenfieldError(
            "is not the folder of a converted data set",
            remedy="convert it first with `evenfield data convert`",
            file=data,
        )
    settings: dict[str, Any] = (source or SourceConfig()).model_dump(exclude_unset=True)
    # Look for REF_* columns in every record: a file may begin with isolated atoms, which have only
    # an energy.
    settings.setdefault("reference_columns", True)
    # If no level is stated, a new level is the safe choice: it gets a new head with free E0.
    settings.setdefault("unstated_level", Path(data).name.split(".")[0])

    config = ConvertConfig(**settings, valid_share=0.0, test_share=0.0, physics=physics)
    if overwrite and not _is_of_a_fine_tuning(work):
        # `overwrite` refers to OUT, and not to a folder of the user that lies next to it
        check_destination(work, remedy=ANOTHER_OUT)
    # An earlier run may have been refused, for example for a unit, and is repeated with other
    # settings: then its data set may be replaced.
    is_earlier_run = _is_of_an_earlier_run(work, str(data), config)
    overwrite = overwrite or is_earlier_run
    if is_earlier_run and _is_the_same_data_set(work, str(data), config):
        # without `overwrite`, the conversion keeps a complete data set and repairs a damaged one
        overwrite = False
    try:
        convert(str(data), work, config, workers=1, overwrite=overwrite)
    except DestinationError as error:
        if "--overwrite" in (error.remedy or "") and not _is_of_a_fine_tuning(work):
            error.remedy = ANOTHER_OUT
        raise
    except NoLabelsError as error:
        error.remedy = how_to_read_labels(error.tally, "source.")
        raise
    except DisagreeingLabelsError as error:
        error.remedy = (
            "name the right one with source.columns and source.units, as in "
            "source.columns.energy=energy source.units.energy=eV"
        )
        raise
    except UnitError as error:
        # The message spells settings as `evenfield data convert` does, without "source.". Units
        # belong together: a single one may be refused again.
        error.remedy = (
            "state the units of energy and forces together, with source. in front of these "
            "settings; or, if the source is right, set source.trust_units=true"
        )
        raise
    except BadRecordError as error:
        other_way = (
            "convert the file with `evenfield data convert`, which can leave bad records out"
        )
        error.remedy = other_way if error.remedy is None else f"{error.remedy}; or {other_way}"
        _say_prefix(error)
        raise
    except EvenfieldError as error:
        _say_prefix(error)
        raise
    return work


@contextmanager
def place_of_data(work: Path, *, replaces_model: bool) -> Iterator[Path]:
    """Context manager that yields the folder into which a fine-tuning converts a file.

    If a model is replaced, the old data set stays until the new model is complete: the new data set
    is made next to `work`, and replaces it when the block succeeds. Otherwise the folder is `work`
    itself.

    Raises DestinationError if `work` holds a data set that no fine-tuning has made.
    """
    if not replaces_model or not (work / INFO).is_file():
        yield work
        return
    if not _is_of_a_fine_tuning(work):
        check_destination(work, remedy=ANOTHER_OUT)
    place = work.with_name(f".{work.name}.next")
    try:
        yield place
        # the folder exists only if a file was converted, and not for a finished data set
        if place.is_dir():
            with replace_folder(work, files_of_data_set(work)) as new:
                copy_folder(place, new)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _say_prefix(error: EvenfieldError) -> None:
    """Add to a remedy that settings of the source have the prefix "source." here."""
    if error.remedy and SOURCE_SETTING.search(error.remedy):
        error.remedy += "; settings of the source begin with source. here"


def _is_of_an_earlier_run(work: Path, data: str, config: ConvertConfig) -> bool:
    """Whether a fine-tuning converted the same bytes into `work`, with any settings."""
    made_from = _source_of(work)
    # a data set that the user converted usually has other splits
    shares = ("valid_share", "test_share")
    is_ours = all(made_from.get("config", {}).get(name) == 0.0 for name in shares)
    return is_ours and made_from["sha256"] == source_fingerprint(data, config)


def _is_the_same_data_set(work: Path, data: str, config: ConvertConfig) -> bool:
    """Whether `work` holds a finished data set made from this name with these settings."""
    if not (work / "dataset_info.json").is_file():
        return False
    made_from = _source_of(work)
    is_same_name = made_from["file"] == name_of_source(data)
    return is_same_name and made_from["config"] == settings_of(config)


def _is_of_a_fine_tuning(work: Path) -> bool:
    """Whether `work` holds a data set that `_convert_file` made, from any source."""
    settings = _source_of(work).get("config", {})
    has_no_splits = all(settings.get(name) == 0.0 for name in ("valid_share", "test_share"))
    return has_no_splits and settings.get("unstated_level") is not None


def _source_of(work: Path) -> dict[str, Any]:
    """The source of the data set in `work`, finished or not; empty if it is not recorded."""
    if not (work / "dataset_info.json").is_file():
        return _unfinished_source_of(work)
    try:
        # read without checking other files: if they are damaged, a conversion repairs them
        source: dict[str, Any] = stated_info(work)["source"]
    except BrokenDataSetError:
        return {}
    return source


def _unfinished_source_of(work: Path) -> dict[str, Any]:
    """The source of the unfinished conversion in `work`; empty unless there is exactly one."""
    begun = list((work / PARTS).glob("*"))
    if len(begun) != 1:
        return {}
    try:
        source = json.loads((begun[0] / staging.ORIGIN).read_text())
    except (OSError, ValueError):
        return {}
    is_source = isinstance(source, dict) and isinstance(source.get("config"), dict)
    return source if is_source and "sha256" in source else {}
