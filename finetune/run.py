"""Fine-tuning from data to a better model, never to a worse one. The story is `finetune` below.

What the potential is at every moment: `state.py`. What comes before learning: `set_up.py`. What is
learned: `strategies.py` and the modules that it names.
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


# structures whose energies are compared with all heads of the model
MOST_TO_COMPARE = 64


@dataclass
class FineTuned:
    """A fine-tuned potential and how it came about."""

    potential: Potential
    target: Target
    strategy: str
    """The strategy that was used; never `auto`."""
    table: list[Step]
    """Errors on the training structures after each step of the set-up."""
    stages: dict[str, Stage]
    """Errors on the judged structures, in order: pretrained, step0, refit where it was a stage,
    the strategy, and the refit after it."""
    started_from: str
    """The level of theory whose head a new head is a copy of; else the level itself."""
    reference: ReferenceReport
    refit: RefitReport
    posterior: Posterior
    gradient: GradientReport | None
    held_out_scores: tuple[float, float] | None
    """Score at step 0 and at the end (safety/guard.py); None when no structures were held out."""
    choice: Choice | None = None
    """What `auto` compared; None where the strategy was named."""

    @property
    def level_of_theory(self) -> str:
        """The level of theory whose head was fine-tuned."""
        return self.target.level_of_theory

    @property
    def learned_elements(self) -> set[int]:
        """Atomic numbers whose reference energies the new structures show.

        An element that is only held out may have been judged by, and not learned. Forces alone do
        not show where its energies begin.
        """
        labelled = [own for own in self.target.train if own.energy is not None]
        return {int(z) for own in labelled for z in own.elements}

    @property
    def elements_without_energy(self) -> set[int]:
        """Atomic numbers in the new structures, of which none with an energy has one."""
        present = {int(z) for own in self.target.train for z in own.elements}
        return present - self.learned_elements

    @property
    def structures(self) -> list[Structure]:
        """All structures that were learned from or chosen by."""
        return [*self.target.train, *self.target.valid]

    @property
    def final(self) -> Stage:
        """The last stage that could be judged.

        With a test split it is the model that is saved. Without one, held-out structures are
        learned from at last, and it is the stage before that.
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

    `data` is the folder of a converted data set, a file, which is converted into the folder `work`,
    or a Target. Another data set in `work` is refused, or replaced with `overwrite`. `say` is told
    which labels were read.

    Every change is kept only as far as no error on held-out structures rises above that of step 0.

    Raises WorseError when the set-up made the model worse, WrongUnitError for labels that look
    like another unit, PhysicsError for labels minus other physics than the model's, and the errors
    of the conversion.
    """
    if isinstance(data, Target):
        target = data
    else:
        target = _open(model, data, config, work, overwrite)
    if say is not None:
        # before the learning, while there is time to name a column that was not read
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
    # A strategy that goes on after its own stage, or learns from held-out structures in the end,
    # has judged itself at the right moment.
    if strategy.name not in run.stages:
        run.judge(strategy.name, fitted.kept)

    potential = with_ensemble(run.potential, fitted.posterior)
    # before anybody looks at the result: a curve shows it, and a model is saved from it
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
    """A warning where another head of the model fits the energies better than the one named."""
    levels = own_levels(model.potential.config.levels_of_theory)
    elements = {level: model.record.trained_symbols(level) for level in levels}
    found = misfits(model.potential, target.train[:MOST_TO_COMPARE], elements)
    # another zero of energy alone is found, and told, by the set-up
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
