"""Fine-tuning from data to a better model, never to a worse one; start with `finetune` below.

`state.py` holds the potential while it changes. `set_up.py` prepares it before anything is learned.
`strategies.py` names the strategies, which do the learning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.torch_modes import own_modes
from ..data_pipelines.sources.label_tally import label_report
from ..data_pipelines.structure import Structure
from ..model_zoo.evaluation.level_fit import misfits
from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.package.levels import own_levels
from ..model_zoo.package.weights import refuse_unusable_weights
from ..model_zoo.potential.potential import Potential
from .auto.choose import Choice, choose
from .closed_form.posterior import Posterior
from .closed_form.reference_energies import ReferenceReport
from .closed_form.refit import RefitReport
from .config import FineTuneConfig
from .gradient.train import GradientReport
from .heads import with_ensemble
from .leaks import notes_on_leaks
from .safety.step0 import Step
from .set_up import set_up
from .state import FineTuning, Stage
from .strategies import AUTO, STRATEGIES, fewest_to_hold_out
from .target import Target, open_target


# most structures whose energies are compared with all heads of the model
MOST_TO_COMPARE = 64


@dataclass
class FineTuned:
    """A fine-tuned potential and the record of how it was made."""

    potential: Potential
    target: Target
    strategy: str
    """The strategy that was used; never `auto`."""
    table: list[Step]
    """Errors on the training structures after each step of the set-up."""
    stages: dict[str, Stage]
    """Errors on the judged structures after each stage, in order: pretrained, step0, the refit if
    the strategy starts with one, the strategy, and the final refit."""
    started_from: str
    """The level of theory whose head was copied for a new head; for an existing head, its own."""
    reference: ReferenceReport
    refit: RefitReport
    posterior: Posterior
    gradient: GradientReport | None
    held_out_scores: tuple[float, float] | None
    """Score at step 0 and at the end (safety/guard.py); None if no structures were held out."""
    choice: Choice | None = None
    """The candidates of `auto`; None if the strategy was named."""

    @property
    def level_of_theory(self) -> str:
        """The level of theory whose head was fine-tuned."""
        return self.target.level_of_theory

    @property
    def learned_elements(self) -> set[int]:
        """Atomic numbers of the elements whose reference energies were learned.

        These are the elements of training structures with an energy. Elements that occur only in
        held-out structures need not have been learned, and forces alone do not determine a
        reference energy.
        """
        labelled = [own for own in self.target.train if own.energy is not None]
        return {int(z) for own in labelled for z in own.elements}

    @property
    def elements_without_energy(self) -> set[int]:
        """Atomic numbers of elements that occur only in training structures without an energy."""
        present = {int(z) for own in self.target.train for z in own.elements}
        return present - self.learned_elements

    @property
    def structures(self) -> list[Structure]:
        """All training and held-out structures."""
        return [*self.target.train, *self.target.valid]

    @property
    def final(self) -> Stage:
        """The last stage that was judged.

        With a test split, this is the final model. Without one, the model finally learns from the
        held-out structures, and this is the stage before.
        """
        return list(self.stages.values())[-1]


@own_modes()
def finetune(
    model: LoadedModel,
    data: Path | str | Target,
    config: FineTuneConfig,
    *,
    work: Path | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    say: Callable[[str], object] | None = None,
) -> FineTuned:
    """Fine-tune a copy of the model's potential; the model itself does not change.

    data: the folder of a converted data set, a file, which is converted into the folder `work`, or
        a Target.
    overwrite: replace a data set in `work` that was made from other data; without it, such a data
        set is refused.
    quiet: show no progress.
    say: is called with lines about the labels that were read, warnings, and the choice of `auto`.

    A change is kept only as far as no error on the held-out structures rises above that of step 0.

    Raises WorseError if the set-up makes the model worse, WrongUnitError if the labels look like
    another unit, PhysicsError if other physics than the model's was subtracted from the labels, and
    the errors of the conversion.
    """
    if isinstance(data, Target):
        target = data
    else:
        target = _open(model, data, config, work, overwrite)
    if say is not None:
        # before the learning, so that the user can stop early and name a column that was not read
        for line in label_report(target.labels, target.setting_prefix):
            say(line)
        for line in _doubts_about_level(model, target):
            say(line)
        for note in notes_on_leaks(target, model.record, config.replay.data):
            say(note)
    run = FineTuning(model, target, config, quiet=quiet)
    run.judge("pretrained")
    reference, table = set_up(run, trust_units=config.trust_units)
    choice = None
    if config.strategy == AUTO:
        choice = choose(run, say or (lambda _line: None))
        strategy = choice.strategy
        learned = choice.learned
    else:
        strategy = STRATEGIES[config.strategy]
        learned = strategy.learn(run)
    fitted = strategy.finish(run, learned)
    # Some strategies judge themselves, because they go on after their own stage or learn from the
    # held-out structures at the end.
    if strategy.name not in run.stages:
        run.judge(strategy.name, fitted.kept)

    potential = with_ensemble(run.potential, fitted.posterior)
    # before the result is used for a curve or saved as a model
    refuse_unusable_weights(potential)
    list(run.stages.values())[-1].errors.refuse_infinite()
    scores = (run.held_out.step0, run.score()) if run.held_out else None
    return FineTuned(
        potential=potential,
        target=target,
        strategy=strategy.name,
        table=table,
        stages=run.stages,
        started_from=run.source_level,
        reference=reference,
        refit=fitted.refit,
        posterior=fitted.posterior,
        gradient=fitted.gradient,
        held_out_scores=scores,
        choice=choice,
    )


def _doubts_about_level(model: LoadedModel, target: Target) -> list[str]:
    """Warnings if another head of the model fits the energies better than the named level."""
    levels = own_levels(model.potential.config.levels_of_theory)
    elements = {level: model.record.trained_symbols(level) for level in levels}
    found = misfits(model.potential, target.train[:MOST_TO_COMPARE], elements)
    # a misfit that is only another zero of energy is reported by the set-up
    return [
        f"warning: {misfit}; is {misfit.level} their level of theory?"
        for misfit in found
        if misfit.better is not None
    ]


def _open(
    model: LoadedModel,
    data: Path | str,
    config: FineTuneConfig,
    work: Path | None,
    overwrite: bool,
) -> Target:
    return open_target(
        data,
        num_structures=config.num_structures,
        seed=config.seed,
        valid_share=config.valid_share,
        fewest_to_hold_out=fewest_to_hold_out(config.strategy),
        source=config.source,
        work=work,
        overwrite=overwrite,
        physics=model.potential.config.physics,
    )
