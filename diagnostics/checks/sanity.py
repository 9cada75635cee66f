"""The battery `sanity`: is a potential sound enough to be used or published?"""

from __future__ import annotations

from ..check import CheckedCalculator, CheckResult
from ..sanity.battery import Attach, Battery, OutFolder
from ..sanity.config import SanityConfig


# The checks in the order in which they run. A new check is a file next to this one, and a line
# here.
BATTERY = (
    "repulsion",
    "bound",
    "crystals",
    "lattice",
    "elastic",
    "water",
    "relaxations",
    "dynamics",
)


def check(
    model: CheckedCalculator,
    settings: SanityConfig,
    out: OutFolder = None,
    attach: Attach = False,
) -> CheckResult:
    """Is a potential physically sound?

    Runs eight checks, which are also separate commands. The exit code is 1 if one of them fails.
    Systems with unknown elements are skipped and counted.

    Examples:
    evenfield check sanity evenfield-s suite=quick --level-of-theory EMT
    evenfield check sanity --calculator ase.calculators.emt:EMT elements=[Cu,Al] --out runs/emt
    """
    return Battery("sanity", BATTERY).run(model, settings, out, attach)
