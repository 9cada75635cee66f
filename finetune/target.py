"""What a model is fine-tuned to: structures of one level of theory, some of them held out."""

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
# With fewer structures none is held out (a strategy may ask for more, see strategy.py).
FEWEST_TO_HOLD_OUT = 8
# With at least so many groups, whole groups are held out.
ENOUGH_GROUPS = 5
# Positions and cells that agree to this many digits after the decimal point are the same.
COPY_DECIMALS = 3
ANOTHER_OUT = (
    "choose another OUT, since --overwrite replaces only data that a fine-tuning has converted"
)
# a key of the source in the remedy of a conversion, as in `columns.energy=E`
SOURCE_SETTING = re.compile(rf"(?<!source\.)\b(?:{'|'.join(SourceConfig.known_keys())})[.=]")


@dataclass(frozen=True)
class Target:
    """Structures to fit to, to choose by and to report errors on, and where they come from."""

    level_of_theory: str
    train: list[Structure]
    valid: list[Structure]
    test: list[Structure]
    source: TrainingData
    labels: LabelTally = field(default_factory=LabelTally)
    """Which labels the source has and which of them were read; empty where nobody counted."""
    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    """Field -> column, as the conversion was told."""
    folder: Path | None = None
    """The converted data set; None for structures that were given as they are."""
    physics: PhysicsConfig | None = None
    """What was subtracted from the labels; None for labels as they are."""
    is_file: bool = False
    """The data were converted by the fine-tuning itself, so that its settings can correct them."""

    @cached_property
    def num_different(self) -> int:
        """Structures to learn from or to choose by, without copies and near copies."""
        return len(different([*self.train, *self.valid]))

    @property
    def setting_prefix(self) -> str:
        """What is put in front of settings of a source: those of a data set belong to `convert`."""
        return "source." if self.is_file else ""

    @property
    def how_to_read_again(self) -> str:
        """The beginning of a remedy that changes how the data are read."""
        if self.is_file:
            return "add"
        return "convert the data again with `evenfield data convert` and"

    def setting_of_unit(self, label: str, unit: str) -> str:
        """The words of a command line that state the unit of a label.

        A unit belongs to a column, so the column is named with it.
        """
        prefix = self.setting_prefix
        # without names, a file is read from ASE's columns and from MACE's
        column = self.columns.get(label, [label, f"REF_{label}"] if self.is_file else label)
        if isinstance(column, list):
            column = f"[{','.join(column)}]"
        return f"{prefix}columns.{label}={column} {prefix}units.{label}={unit}"

    @property
    def judged(self) -> tuple[str, list[Structure]]:
        """The split that errors are reported on: test, else what was held out, else all."""
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
    """The target in a converted data set, or in a file, which is converted into the folder `work`.

    When the data have no validation split, `valid_share` of the training structures is held out,
    provided that there are `fewest_to_hold_out` of them. Another data set in `work` is refused, or
    replaced with `overwrite`. `physics` is that of the model, and is subtracted from labels of the
    whole.

    Raises EvenfieldError when the data mix levels of theory or have too few structures, and
    PhysicsError for labels minus other physics.
    """
    folder = local_path(data)
    is_file = not (folder / "dataset_info.json").is_file()
    if is_file:
        folder = _convert_file(data, source, work, overwrite, physics)
    info = read_info(folder)
    levels = info["levels_of_theory"]
    if len(levels) != 1:
        # data that are converted already must be converted again
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
    """Training structures of a data set: all, or `num_structures` drawn by seed.

    A larger draw contains every smaller one of the same seed.
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
    """Training and held-out structures.

    Copies and near copies are never separated, and count as one structure: one of them in each part
    would make the comparison worthless. Groups are not separated either where there are enough of
    them.
    """
    own = different(structures)
    if len(own) < fewest_to_hold_out or share == 0:
        return structures, []
    units = _joined(_groups(structures), own)
    if len(units) < ENOUGH_GROUPS:
        units = own
    if len(units) < 2:
        return structures, []

    # An element must stay in training: its E0 would never be learned. And compositions must still
    # tell the elements apart: held-out structures would not show an E0 that nothing determines.
    left = Counter(z for unit in units for z in _elements(unit))
    compositions = _Compositions(structures)

    # Take units in random order as long as they fit into the wanted number.
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
        # every unit is larger than what is wanted, or the only one with one of its elements
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
    """Compositions of the structures that are left in training, and what they determine."""

    def __init__(self, structures: Sequence[Structure]) -> None:
        self.elements = sorted(_elements(structures))
        self.left = Counter(self._of(structure) for structure in structures)
        self.rank = self._rank(self.left)

    def can_spare(self, unit: Sequence[Structure]) -> bool:
        """Whether as many combinations of E0 are determined without the unit."""
        without = self.left - Counter(self._of(structure) for structure in unit)
        # most units leave others of their composition behind
        return len(without) == len(self.left) or self._rank(without) == self.rank

    def remove(self, unit: Sequence[Structure]) -> None:
        """The unit is held out."""
        self.left -= Counter(self._of(structure) for structure in unit)

    def _of(self, structure: Structure) -> tuple[int, ...]:
        """Atoms of each element."""
        return tuple(int((structure.atomic_numbers == z).sum()) for z in self.elements)

    @staticmethod
    def _rank(compositions: Counter[tuple[int, ...]]) -> int:
        if not compositions:
            return 0
        return int(np.linalg.matrix_rank(np.array(list(compositions), dtype=float)))


def _elements(structures: Sequence[Structure]) -> set[int]:
    """Atomic numbers that occur."""
    return {int(z) for structure in structures for z in structure.elements}


def alike(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Structures together with their copies, in the order of the first of each."""
    groups: dict[bytes, list[Structure]] = {}
    for structure in structures:
        geometry = np.vstack([structure.positions, structure.cell])
        rounded = np.rint(10**COPY_DECIMALS * geometry).astype(np.int64)
        numbers = structure.atomic_numbers.astype(np.int64)
        key = numbers.tobytes() + rounded.tobytes()
        groups.setdefault(key, []).append(structure)
    return list(groups.values())


def different(structures: Sequence[Structure]) -> list[list[Structure]]:
    """Structures together with their copies and near copies, in the order of the first of each.

    Near copies are those that a conversion lists as near duplicates.
    """
    groups: dict[int, list[Structure]] = {}
    for copies in alike(structures):
        groups.setdefault(fingerprint(copies[0]), []).extend(copies)
    return list(groups.values())


def _joined(groups: list[list[Structure]], own: list[list[Structure]]) -> list[list[Structure]]:
    """Groups that share copies or near copies, the lists of `own`, as one."""
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
    """Structures by the group that their source names, a trajectory for example."""
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
    """Convert a file or another source into `work`; labels in REF_* columns are recognised.

    Raises DestinationError when `work` holds a data set of other bytes, unless `overwrite`.
    """
    if work is None:
        raise EvenfieldError(
            "is not the folder of a converted data set",
            remedy="convert it first with `evenfield data convert`",
            file=data,
        )
    settings: dict[str, Any] = (source or SourceConfig()).model_dump(exclude_unset=True)
    # Every record is looked at: a file may begin with isolated atoms that have an energy only.
    settings.setdefault("reference_columns", True)
    # A level of its own is never wrong: it gets a head of its own, with free E0.
    settings.setdefault("unstated_level", Path(data).name.split(".")[0])

    config = ConvertConfig(**settings, valid_share=0.0, test_share=0.0, physics=physics)
    if overwrite and not _is_of_a_fine_tuning(work):
        # the user has named OUT, and not what happens to lie next to it
        check_destination(work, remedy=ANOTHER_OUT)
    # A run that was refused for a unit, say, is repeated with another setting.
    is_earlier_run = _is_of_an_earlier_run(work, str(data), config)
    overwrite = overwrite or is_earlier_run
    if is_earlier_run and _is_the_same_data_set(work, str(data), config):
        # it is kept if it is whole, and repaired otherwise
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
        # the message names settings of the source as `evenfield data convert` spells them
        # Units belong together: one that is stated alone may be refused again.
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
    """Where a fine-tuning converts a file to, whose data set is `work` after the block.

    A model that is replaced keeps its data until the new one is whole: the new data set is made
    next to `work`, and takes its place when the block succeeds.

    Raises DestinationError when `work` holds a data set that no fine-tuning has made.
    """
    if not replaces_model or not (work / INFO).is_file():
        yield work
        return
    if not _is_of_a_fine_tuning(work):
        check_destination(work, remedy=ANOTHER_OUT)
    place = work.with_name(f".{work.name}.next")
    try:
        yield place
        # data that had been converted already have not been made there
        if place.is_dir():
            with replace_folder(work, files_of_data_set(work)) as new:
                copy_folder(place, new)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _say_prefix(error: EvenfieldError) -> None:
    """Say how settings are spelt here that a remedy spells as `evenfield data convert` does."""
    if error.remedy and SOURCE_SETTING.search(error.remedy):
        error.remedy += "; settings of the source begin with source. here"


def _is_of_an_earlier_run(work: Path, data: str, config: ConvertConfig) -> bool:
    """Whether a fine-tuning converted the same bytes into `work`, with whatever settings."""
    made_from = _source_of(work)
    # a data set that the user converted has splits of its own
    shares = ("valid_share", "test_share")
    is_ours = all(made_from.get("config", {}).get(name) == 0.0 for name in shares)
    return is_ours and made_from["sha256"] == source_fingerprint(data, config)


def _is_the_same_data_set(work: Path, data: str, config: ConvertConfig) -> bool:
    """Whether `work` holds a finished data set of this name and these settings."""
    if not (work / "dataset_info.json").is_file():
        return False
    made_from = _source_of(work)
    is_same_name = made_from["file"] == name_of_source(data)
    return is_same_name and made_from["config"] == settings_of(config)


def _is_of_a_fine_tuning(work: Path) -> bool:
    """Whether `work` holds a data set that `_convert_file` made, of whatever source."""
    settings = _source_of(work).get("config", {})
    has_no_splits = all(settings.get(name) == 0.0 for name in ("valid_share", "test_share"))
    return has_no_splits and settings.get("unstated_level") is not None


def _source_of(work: Path) -> dict[str, Any]:
    """What the data set in `work` is made from, finished or not; empty where it does not say."""
    if not (work / "dataset_info.json").is_file():
        return _unfinished_source_of(work)
    try:
        # other files may be damaged, which a conversion repairs
        source: dict[str, Any] = stated_info(work)["source"]
    except BrokenDataSetError:
        return {}
    return source


def _unfinished_source_of(work: Path) -> dict[str, Any]:
    """The source of the only conversion that has begun in `work`; empty without such a one."""
    begun = list((work / PARTS).glob("*"))
    if len(begun) != 1:
        return {}
    try:
        source = json.loads((begun[0] / staging.ORIGIN).read_text())
    except (OSError, ValueError):
        return {}
    is_source = isinstance(source, dict) and isinstance(source.get("config"), dict)
    return source if is_source and "sha256" in source else {}
