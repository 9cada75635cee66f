"""The calculator that a check compares with, where the settings name one."""

from __future__ import annotations

from ase.calculators.calculator import Calculator

from ..check import OtherCalculator
from .config import SanityConfig


def oracle_of(settings: SanityConfig) -> Calculator | None:
    """The calculator of the setting `oracle`; None without one.

    Raises CheckError when the setting names nothing that can be made.
    """
    if settings.oracle is None:
        return None
    return OtherCalculator(settings.oracle, option="oracle=").calculator()
