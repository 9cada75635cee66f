"""Settings for reading a source: how its columns map to canonical fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from ...core.labels import LABELS
from ...core.settings import Settings
from .label_names import REFERENCE_COLUMNS


# columns of these fields are named in the config for tables only; other formats define them
GEOMETRY = ("atomic_numbers", "positions", "cell", "pbc")
TEXTS = ("level_of_theory", "structure_id", "group", "split")

FilterValue = str | int | float | bool


@dataclass(frozen=True)
class LabelColumn:
    """A column that may hold a label."""

    name: str
    factor: float
    """Converts values to the pipeline's unit (times A^3 if `times_volume`)."""
    times_volume: bool
    """True if the column holds the label times the cell volume, as a virial does."""
    is_named: bool
    """True if the config names the column; False if the file format itself defines the label."""


class SourceConfig(Settings):
    """How a source's columns become canonical fields.

    Without `columns`, the labels are those that ASE itself recognises, in ASE's units, which are
    also the pipeline's. A label read from a named column needs its unit in `units`, because the
    file does not define it. Dots address nested columns (`structure.lattice.matrix`).

    A field may have several columns, as in `columns.forces=[forces,REF_forces]`. Each record uses
    the first of them that it contains. If it contains more than one, their values must agree.
    """

    columns: dict[str, str | list[str]] = Field(
        default={},
        description="field -> column, info key or array key of the source; of a list, the first "
        "that a record has",
    )
    units: dict[str, str | list[str]] = Field(
        default={},
        description="unit of each label in columns, one for all of its columns or one for each; "
        "-eV for a virial",
    )
    length_unit: Literal["A", "Bohr", "nm"] = Field(
        default="A", description="unit of positions and cell"
    )
    masks: dict[str, str] = Field(
        default={}, description="label -> column; where its value is true the label is dropped"
    )
    filters: dict[str, FilterValue | list[FilterValue]] = Field(
        default={},
        description="column -> value, or list of values; other records are not read",
    )
    level_of_theory: str | None = Field(
        default=None, description="level of theory of all structures of the source"
    )
    unstated_level: str | None = Field(
        default=None, description="level of theory of the structures that state none themselves"
    )
    reference_columns: bool = Field(
        default=False,
        description="read REF_energy, REF_forces, REF_stress and REF_virials too (eV, eV/A, "
        "eV/A^3, eV), MACE's names, where a label has no column of its own",
    )
    split_by: Literal["file", "group", "structure"] = Field(
        default="file",
        description="file: the source's own split, and by group where it states none; group: "
        "always by group; structure: each on its own, so near duplicates may be on both sides",
    )
    split_names: dict[str, Literal["train", "valid", "test"] | None] = Field(
        default={},
        description="what the source calls its splits -> train, valid or test; null for structures "
        "that are split by group",
    )
    hub_config: str | None = Field(
        default=None, description="configuration (subset) of a hub data set"
    )
    trust_units: bool = Field(
        default=False, description="read the source although its units or signs look wrong"
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        # the message lists labels and texts first, because few sources need geometry columns
        known_fields = [*sorted({*LABELS, *TEXTS}), *GEOMETRY]
        for field in self.columns:
            if field not in known_fields:
                known = ", ".join(known_fields)
                raise ValueError(f"columns.{field} is not a field: use one of {known}")
        known = ", ".join(LABELS)
        for key in ("units", "masks"):
            for label in getattr(self, key):
                if label not in LABELS:
                    raise ValueError(f"{key}.{label} is not a label: use one of {known}")
        for label in LABELS:
            self._check_label(label)
        return self

    def _check_label(self, label: str) -> None:
        columns = self.names_of(label)
        units = _as_list(self.units.get(label))
        if columns and not units:
            raise ValueError(
                f"columns.{label}={_written(columns)} has no unit: add units.{label}=... "
                "(for example eV, eV/A, eV/A^3)"
            )
        if units and not columns:
            raise ValueError(
                f"units.{label}={_written(units)} belongs to no column: add columns.{label}=... "
                f"(for example columns.{label}={label})"
            )
        if len(units) not in (1, len(columns)) and columns:
            raise ValueError(
                f"units.{label}={_written(units)} does not fit columns.{label}="
                f"{_written(columns)}: state one unit for all of them, or one for each"
            )
        known_units = LABELS[label].known_units
        for unit in units:
            if unit not in known_units:
                known = ", ".join(known_units)
                raise ValueError(f"units.{label}='{unit}' is not known: use one of {known}")

    def names_of(self, field: str) -> list[str]:
        """Columns that the config names for a field, in the order in which they are tried."""
        return _as_list(self.columns.get(field))

    def units_of(self, label: str) -> list[str]:
        """Units of the columns that the config names for a label, one per column."""
        columns = self.names_of(label)
        units = _as_list(self.units.get(label))
        # a single unit applies to all columns
        return units * len(columns) if len(units) == 1 else units

    @cached_property
    def label_columns(self) -> dict[str, list[LabelColumn]]:
        """Label -> columns in which to look for it, in this order."""
        # cached, because every record needs it
        found = {}
        for name in LABELS:
            columns = dict(zip(self.names_of(name), self.units_of(name), strict=True))
            places = []
            if not columns:
                # a label defined by the format itself, in ASE's unit, which is the pipeline's too
                places.append(LabelColumn(name, 1.0, times_volume=False, is_named=False))
                if self.reference_columns:
                    # not every registered label has a reference column
                    columns = REFERENCE_COLUMNS.get(name, {})
            for column, unit in columns.items():
                places.append(_label_column(name, column, unit))
            found[name] = places
        return found

    @cached_property
    def named_label_columns(self) -> frozenset[str]:
        """All label columns that the config names, including those of `reference_columns`."""
        names = set()
        for columns in self.label_columns.values():
            names |= {column.name for column in columns if column.is_named}
        return frozenset(names)

    @cached_property
    def own_label_names(self) -> frozenset[str]:
        """Names that are read as labels: columns from the config, and labels without a column."""
        own = {name for name in LABELS if name not in self.columns}
        return self.named_label_columns | own

    def passes(self, values: dict[str, Any]) -> bool:
        """Whether a record with these values passes the filters; 1, 1.0 and "1" are equal.

        values: column -> value, with every column that `filters` names.
        """
        # compared as strings, because YAML, extxyz and Arrow give such values different types
        for key, wanted in self.filters.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            plain = _plain(values[key])
            if plain not in map(_plain, allowed):
                return False
        return True


def _label_column(label: str, column: str, unit: str) -> LabelColumn:
    factors = LABELS[label].unit_factors
    if unit in factors:
        return LabelColumn(column, factors[unit], times_volume=False, is_named=True)
    factors = LABELS[label].times_volume
    return LabelColumn(column, factors[unit], times_volume=True, is_named=True)


def _as_list(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _written(values: list[str]) -> str:
    """A list of columns or units in command-line syntax."""
    if len(values) == 1:
        return values[0]
    return f"[{','.join(values)}]"


def _plain(value: Any) -> str:
    """The string by which filters compare a value: whole numbers have no decimal point."""
    return str(value).removesuffix(".0")
