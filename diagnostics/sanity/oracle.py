"""The reference calculator that the setting `oracle` names."""

from __future__ import annotations

from ase.calculators.calculator import Calculator

from ..check import OtherCalculator
from .config import SanityConfig


def oracle_of(settings: SanityConfig) -> Calculator | None:
    """The calculator of the setting `oracle`; None if the setting is not given.

    Raises CheckError if the calculator cannot be imported or made.
    """
    if settings.oracle is None:
        return None
    return OtherCalculator(settings.oracle, option="oracle=").calculator()
