"""The physics that a simulation relies on: does a potential give it, and what does it get wrong?"""

from __future__ import annotations

from ..check import CheckedCalculator, CheckResult
from ..sanity.battery import Attach, Battery, OutFolder
from ..sanity.config import SanityConfig


# The checks, in the order in which they are made. A new one is a file next to this one, and a line
# here.
BATTERY = (
    "timestep",
    "smoothness",
    "diatomics",
    "elastic",
    "phonons",
    "defects",
    "torque",
    "vibrations",
    "beads",
    "handedness",
    "locality",
    "mixing",
    "stationary",
)
# What the quick suite leaves out. Beads say little that vibrations do not say.
SLOW = ("beads",)


def check(
    model: CheckedCalculator,
    settings: SanityConfig,
    out: OutFolder = None,
    attach: Attach = False,
) -> CheckResult:
    """Is a potential fit for dynamics, phonons and defects? Each check is also a command.

    The exit code is 1 if one of them fails. Elements that are not known are skipped and counted.

    Examples:
    evenfield check physics evenfield-s suite=quick --level-of-theory EMT
    evenfield check physics --calculator ase.calculators.emt:EMT elements=[Cu,Al] --out runs/emt
    """
    return Battery("physics", BATTERY, SLOW).run(model, settings, out, attach)
