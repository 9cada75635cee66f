"""The registry of fine-tuning strategies: to add one, add a module and a line here.

`auto` is not a strategy. It chooses one of them by held-out structures (`auto/choose.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .closed_form.strategy import Refit, WideRefit
from .gradient.strategies.full import Full
from .gradient.strategies.lora import Lora
from .gradient.strategies.new_element import NewElement
from .gradient.strategies.readout import ReadoutOnly
from .strategy import Strategy


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Refit(),
        WideRefit(),
        ReadoutOnly(),
        Lora(),
        Full(),
        NewElement(),
    )
}

AUTO = "auto"


def fewest_to_hold_out(name: str) -> int:
    """Smallest number of structures with which the strategy `name` holds any out."""
    strategy = STRATEGIES.get(name)
    return Strategy.fewest_to_hold_out if strategy is None else strategy.fewest_to_hold_out


def describe_strategies() -> str:
    """The names of all strategies and what they train, for help texts."""
    own = [f"{name}: {strategy.description}" for name, strategy in STRATEGIES.items()]
    return "; ".join(
        [f"{AUTO}: the best of refit, wide, full and full after wide, by held-out structures", *own]
    )


# The type of a setting that names a strategy. Its names come from the registry at run time, which a
# type checker cannot follow.
if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[(AUTO, *STRATEGIES)]
