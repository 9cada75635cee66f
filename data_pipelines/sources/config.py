"""How a source is read: the settings that map its columns to canonical fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ...core.labels import LABELS
from ...core.settings import Settings


# named in the config for tables only, because the readers of other formats know where they are
GEOMETRY = ("atomic_numbers", "positions", "cell", "pbc")
TEXTS = ("level_of_theory", "structure_id", "group", "split")

FilterValue = str | int | float | bool


class SourceConfig(Settings):
    """How a source's columns become canonical fields.

    Without `columns`, the labels are those that ASE itself recognises, in ASE's units, which are
    ours. The unit of a label from a named column must be stated in `units`, because no program
    can know it. A dot leads into nested columns (`structure.lattice.matrix`).
    """

    columns: dict[str, str] = Field(
        default={}, description="field -> column, info key or array key of the source"
    )
    units: dict[str, str] = Field(default={}, description="unit of each label in columns")
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
    split_by: Literal["file", "group", "structure"] = Field(
        default="file",
        description="file: the source's own split, and by group where it states none; group: "
        "always by group; structure: each on its own, so near duplicates may be on both sides",
    )
    hub_config: str | None = Field(
        default=None, description="configuration (subset) of a hub data set"
    )
    trust_units: bool = Field(
        default=False, description="read the source although its units or signs look wrong"
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        # labels and texts first in the message: few sources need the geometry named
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
        # a label and its unit belong together
        for label in LABELS:
            self._check_label(label)
        return self

    def _check_label(self, label: str) -> None:
        column = self.columns.get(label)
        unit = self.units.get(label)
        if column is not None and unit is None:
            raise ValueError(
                f"columns.{label}={column} has no unit: add units.{label}=... "
                "(for example eV, eV/A, eV/A^3)"
            )
        if unit is not None and column is None:
            raise ValueError(
                f"units.{label}={unit} belongs to no column: add columns.{label}=... "
                f"(for example columns.{label}={label})"
            )
        known_units = LABELS[label].unit_factors
        if unit is not None and unit not in known_units:
            known = ", ".join(known_units)
            raise ValueError(f"units.{label}='{unit}' is not known: use one of {known}")

    def passes(self, values: dict[str, Any]) -> bool:
        """Whether the filters let a record with these values through; 1, 1.0 and "1" are equal."""
        # YAML, extxyz and Arrow disagree about the type of such values, so texts are compared
        for key, wanted in self.filters.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            plain = _plain(values[key])
            if plain not in map(_plain, allowed):
                return False
        return True


def _plain(value: Any) -> str:
    """A value as filters compare it: whole numbers without a point."""
    return str(value).removesuffix(".0")
