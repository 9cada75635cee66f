"""The set-up before anything is learned: reference energies, new elements, core radii.

E0 is fitted first, because every other comparison of energies depends on it. Changes for new
elements and core radii are kept only if no error rises.
"""

from __future__ import annotations

from collections.abc import Callable

from ..model_zoo.potential.weights_aside import copied_weights, weights_aside
from .closed_form.radii import refit_radii
from .closed_form.reference_energies import ReferenceReport, refit_reference_energies
from .gradient.new_elements import start_from_neighbours
from .safety.guard import HeldOut
from .safety.step0 import (
    Step,
    can_judge_units,
    refuse_if_worse,
    refuse_wrong_units,
    step,
    worse_labels,
)
from .state import FineTuning


def set_up(run: FineTuning, *, trust_units: bool) -> tuple[ReferenceReport, list[Step]]:
    """Prepare the potential of `run` in place.

    Returns the report on E0, and the errors on the training structures after each step. Also sets
    `run.held_out`, whose score decides whether later changes are kept, and `run.step0_weights`.

    Raises WorseError if the errors on the training structures are higher at the end than at the
    start. Raises WrongUnitError if the labels look like another unit, unless `trust_units` is set
    or the model's own errors are too large to tell.
    """
    potential = run.potential
    train = run.target.train
    table = [step("pretrained", potential, train)]
    if not trust_units and can_judge_units(run.model.evaluation, run.source_level):
        refuse_wrong_units(potential, run.target)

    valid = run.target.valid
    reference = refit_reference_energies(potential, run.head, train, run.known_e0, held_out=valid)
    # with another zero of energy, the pretrained E0 say nothing
    if reference.another_zero:
        run.known_e0 = set()
    table.append(step("step 0: E0 refitted", potential, train))
    run.judge("step0")

    # From here on, errors on the held-out structures must not exceed those of step 0.
    if valid:
        run.held_out = HeldOut(potential, valid)

    _if_not_worse(
        run,
        table[-1],
        lambda: start_from_neighbours(potential, run.new_elements, run.known_elements),
    )
    _if_not_worse(run, table[-1], lambda: refit_radii(potential, run.head, train))
    table.append(step("set-up: new elements, core radii", potential, train))
    refuse_if_worse(table)

    run.step0_weights = copied_weights(potential)
    return reference, table


def _if_not_worse(run: FineTuning, before: Step, change: Callable[[], object]) -> None:
    """Change the potential and refit E0; undo both if an error on any structures rises."""
    score = run.score()
    with weights_aside(run.potential) as aside:
        change()
        refit_reference_energies(
            run.potential,
            run.head,
            run.target.train,
            run.known_e0,
            held_out=run.target.valid,
        )
        after = step("changed", run.potential, run.target.train)
        if not worse_labels(after, before) and run.score() <= score:
            aside.keep_changes()
