"""What is measured during a run: errors on the validation split, and the noise that is learned."""

from __future__ import annotations

from rich.console import Console

from ...data_pipelines.stream.collection import Collection
from ...model_zoo.evaluation.evaluation import evaluate, with_a_head
from ...model_zoo.evaluation.summary import ErrorSummary
from ...model_zoo.potential.potential import Potential
from ..loop.noise import NoiseScales
from .callback import Callback, Loop, StepReport


class Validation(Callback):
    """Errors on the validation split every `every` steps, into the report and onto the screen.

    Rank 0 holds it; the others wait at their next collective operation.
    """

    def __init__(
        self, potential: Potential, data: Collection, console: Console, every: int, limit: int
    ) -> None:
        self.potential = potential
        self.data = data
        self.console = console
        self.every = every
        self.limit = limit

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every:
            return
        structures = with_a_head(self.potential, self.data.structures("valid"))
        # an average of the weights, if there is one: that is what will be exported
        with loop.evaluated_weights():
            summary = evaluate(self.potential, structures, "valid", self.limit)
        # the evaluation has switched it off
        self.potential.train()
        report.evaluation = summary
        self.console.print(f"step {report.step}: valid " + ", ".join(_figures(summary)))


class LearnedNoise(Callback):
    """Adds the learned noise to the report, every `every` steps and at the last one."""

    def __init__(self, noise: NoiseScales, every: int) -> None:
        self.noise = noise
        self.every = every

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every == 0 or report.step == loop.max_steps:
            report.noise = self.noise.table()


def _figures(summary: ErrorSummary) -> list[str]:
    """The errors of the labels that the validation split has, as text."""
    figures = []
    if summary.energy_mae_per_atom is not None:
        figures.append(f"energy MAE {1000 * summary.energy_mae_per_atom:.1f} meV/atom")
    if summary.force_mae is not None:
        figures.append(
            f"force MAE {summary.force_mae:.3f} eV/A (RMS of the labels {summary.force_rms:.3f})"
        )
        figures.append(
            f"worst element {summary.worst_element} {summary.worst_element_force_mae:.3f}"
        )
    return figures
