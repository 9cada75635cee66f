"""Format numbers for readers: with few digits, and a dash for a missing one."""

from __future__ import annotations

from math import isfinite


ANGSTROM = "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}"
FORCE_UNIT = f"eV/{ANGSTROM}"


def short_number(value: float) -> str:
    """Three significant digits in at most six characters.

    >>> [short_number(value) for value in (0.01234, 1.234, 12345, 4.56e6, 1.2e-5)]
    ['0.0123', '1.23', '12.3k', '4.56M', '1.2e-05']
    """
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # numbers from 999.5 on would round to four digits
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{letter}"
    if float(value).is_integer():
        return str(int(value))
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:#.3g}".rstrip(".")


def table_cell(value: float | None, factor: float = 1.0) -> str:
    """`value` times `factor` with three digits, or a dash if it is missing or not finite.

    Unlike `short_number`, this keeps trailing zeros, so that the digits in a column line up.
    """
    if value is None or not isfinite(value):
        return "-"
    scaled = factor * value
    if 1e-4 <= abs(scaled) < 999.5:
        return f"{scaled:#.3g}".rstrip(".")
    return short_number(scaled)


def interval_cell(interval: tuple[float, float] | None, factor: float = 1.0) -> str:
    """Lower and upper bound, each formatted by `table_cell`; a dash if there are none."""
    if interval is None:
        return "-"
    low, high = interval
    return f"{table_cell(low, factor)} to {table_cell(high, factor)}"


def written_unit(unit: str) -> str:
    """A unit such as eV/A^3, written with an Angstrom sign and superscripts for display."""
    return unit.replace("/A^3", f"/{ANGSTROM}\u00b3").replace("/A", f"/{ANGSTROM}")
