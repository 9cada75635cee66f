"""How a source is read: the settings that map its columns to canonical fields, and the pieces that it falls into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from ...core.settings import Settings
from ...core.units import unit_factor


Label = Literal["energy", "forces", "stress"]
LABELS: tuple[Label, ...] = ("energy", "forces", "stress")
GEOMETRY = (
    "atomic_numbers",
    "positions",
    "cell",
    "pbc",
)  # columns of tables only; ASE's readers know them
TEXTS = ("level_of_theory", "structure_id", "group", "split")

FilterValue = str | int | float | bool


@dataclass(frozen=True)
class Part:
    """An independent piece of a source, in a stable order: records [first, last) of a file; last None = to the end."""

    name: str  # file or URL, as messages show it
    first: int = 0
    last: int | None = None


@dataclass(frozen=True)
class Rejected:
    """A bad record: file, record index (row id in a database), and what is wrong with the mend."""

    file: str
    record: int
    reason: str


class SourceConfig(Settings):
    """How a source's columns become canonical fields.

    Without `columns`, the labels are what ASE itself recognises (its units are ours).  A label taken from a
    named column has no unit that a program could know, so `units` must state one.  Columns of geometry are for
    Parquet and hub data sets; a dot goes into nested columns (`structure.lattice.matrix`).
    """

    columns: dict[str, str] = Field(
        default={}, description="field -> column, info key or array key of the source"
    )
    units: dict[Label, str] = Field(default={}, description="unit of each label named in columns")
    length_unit: Literal["A", "Bohr", "nm"] = Field(
        default="A", description="unit of positions and cell"
    )
    masks: dict[Label, str] = Field(
        default={}, description="label -> info key; a true value drops the label"
    )
    filters: dict[str, FilterValue | list[FilterValue]] = Field(
        default={},
        description="column -> value, or list of values, that a record must have to be read",
    )
    level_of_theory: str | None = Field(
        default=None, description="tag for every structure of the source"
    )
    split_by: Literal["file", "group", "structure"] = Field(
        default="file",
        description="the file's own split where it states one, else by group; or always by group; or each "
        "structure on its own, which lets near duplicates stand on both sides",
    )
    hub_config: str | None = Field(
        default=None, description="configuration (subset) of a hub data set"
    )
    trust_units: bool = Field(
        default=False, description="read the source though its units or signs look wrong"
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        fields = {*LABELS, *GEOMETRY, *TEXTS}
        for field in self.columns:
            if field not in fields:
                known = ", ".join([*sorted({*LABELS, *TEXTS}), *GEOMETRY])
                raise ValueError(f"columns.{field} is not a field: use one of {known}")
        for label in LABELS:
            if label in self.columns and label not in self.units:
                raise ValueError(
                    f"columns.{label}={self.columns[label]} has no unit: add units.{label}=... "
                    "(for example eV, eV/A, eV/A^3)"
                )
            if label in self.units and label not in self.columns:
                raise ValueError(
                    f"units.{label}={self.units[label]} belongs to no column: add columns.{label}=... "
                    f"(for example columns.{label}={label})"
                )
            if label in self.units:
                unit_factor(label, self.units[label])
        return self

    def passes(self, values: dict[str, Any]) -> bool:
        """Whether a record with these values of the filter columns is wanted; 1, 1.0 and "1" are the same."""
        for key, wanted in self.filters.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if _plain(values[key]) not in map(_plain, allowed):
                return False
        return True


def _plain(value: Any) -> str:
    """A value as filters compare it: whole numbers without a point."""
    return str(value).removesuffix(".0")
