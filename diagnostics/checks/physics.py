"""The battery `physics`: does a potential have the physics that simulations rely on?"""

from __future__ import annotations

from ..check import CheckedCalculator, CheckResult
from ..sanity.battery import Attach, Battery, OutFolder
from ..sanity.config import SanityConfig


# The checks in the order in which they run. A new check is a file next to this one, and a line
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
# Left out by the quick suite: `beads` tells little that `vibrations` does not tell.
SLOW = ("beads",)


def check(
    model: CheckedCalculator,
    settings: SanityConfig,
    out: OutFolder = None,
    attach: Attach = False,
) -> CheckResult:
    """Is a potential fit for dynamics, phonons and defects?

    Runs several checks, which are also separate commands. The exit code is 1 if one of them fails.
    Systems with unknown elements are skipped and counted.

    Examples:
    evenfield check physics evenfield-s suite=quick --level-of-theory EMT
    evenfield check physics --calculator ase.calculators.emt:EMT elements=[Cu,Al] --out runs/emt
    """
    return Battery("physics", BATTERY, SLOW).run(model, settings, out, attach)
