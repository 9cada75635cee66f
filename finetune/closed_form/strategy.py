"""The strategies `refit` and `wide`: readout and reference energies in closed form, in seconds."""

from __future__ import annotations

from dataclasses import replace

from ...model_zoo.potential.weights_aside import copied_weights, weights_aside
from ..state import FineTuning, Refitted
from ..strategy import Fitted, Strategy
from .widen import narrowed, widened


class Refit(Strategy):
    """Refits the linear readout; the network and all other heads keep their weights."""

    name = "refit"
    description = "readout and E0 in closed form"
    # The folds that the refit leaves out choose well even when no structures are held out, so it
    # learns from all of them for longer than the gradient strategies do (docs/decisions/0009).
    fewest_to_hold_out = 32

    def fit(self, run: FineTuning) -> Fitted:
        """Refit; then, if held-out structures confirm it, refit once more with them included."""
        refitted = run.refit(run.target.train)
        run.judge(self.name, kept=refitted.share)
        if run.target.valid and refitted.share > 0:
            refitted = self._with_held_out(run, refitted)
            if run.target.test:
                run.judge(self.name, kept=refitted.share)
        return Fitted(refitted.report, refitted.posterior, refitted.share)

    def _with_held_out(self, run: FineTuning, accepted: Refitted) -> Refitted:
        """A refit from step 0 to all structures, unless it makes the held-out ones worse."""
        accepted_score = run.score()
        with weights_aside(run.potential, run.step0_weights) as aside:
            report, posterior = run.solve(run.structures)
            if run.score() <= accepted_score:
                aside.keep_changes()
                return replace(accepted, report=report, posterior=posterior)
        return accepted


# Random features that are tried, as parts of the most.
SHARES_OF_RANDOM = (0.0, 1 / 3, 1.0)


class WideRefit(Refit):
    """A refit with random features of the network as well, as many as left-out structures confirm.

    Where they confirm none, the readout keeps its size. How much energies count against forces is
    chosen in the same way. With `random_features=0` it is the usual refit.
    """

    name = "wide"
    description = "as refit, with random features appended to the readout"

    def fit(self, run: FineTuning) -> Fitted:
        """Widen, refit, and cut off the features that no weight reads."""
        most = run.config.refit.random_features
        if most == 0:
            return super().fit(run)
        size = run.potential.config.readout_size
        run.sizes = tuple(sorted({size + round(share * most) for share in SHARES_OF_RANDOM}))
        run.potential = widened(run.potential, most, run.config.seed)
        run.step0_weights = copied_weights(run.potential)

        fitted = super().fit(run)
        used = fitted.posterior.size
        if fitted.kept == 0.0:
            # the change was undone, and with it every weight of a random feature
            used = size
        run.potential = narrowed(run.potential, used)
        return replace(
            fitted,
            refit=replace(fitted.refit, features=used),
            posterior=fitted.posterior.narrowed(used),
        )
