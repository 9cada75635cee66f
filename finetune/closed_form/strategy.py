"""The strategies `refit` and `wide`: readout and reference energies in closed form, in seconds."""

from __future__ import annotations

from dataclasses import replace

from ...model_zoo.potential.weights_aside import copied_weights, weights_aside
from ..state import FineTuning, Refitted
from ..strategy import Fitted, Learned, Strategy
from .widen import narrowed, widened


class Refit(Strategy):
    """Refits the linear readout; the network and all other heads keep their weights."""

    name = "refit"
    description = "readout and E0 in closed form"
    # The refit chooses well by the folds that it leaves out, even without held-out structures. So
    # it needs more structures than the gradient strategies do before it holds any out: six held out
    # of 32 undid good refits (docs/decisions/0033).
    fewest_to_hold_out = 128

    def learn(self, run: FineTuning) -> Learned:
        """Refit to the structures that are not held out."""
        refitted = run.refit(run.target.train)
        return Learned(refitted.share, refitted=refitted)

    def finish(self, run: FineTuning, learned: Learned) -> Fitted:
        """If held-out structures confirmed the refit, refit once more with them included."""
        refitted = learned.refitted
        assert refitted is not None, "a closed-form strategy learns by a refit"
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


# Numbers of random features that are tried, over `random_features`.
SHARES_OF_RANDOM = (0.0, 1 / 3, 1.0)


class WideRefit(Refit):
    """A refit with random features appended to the readout, as many as left-out structures confirm.

    If they confirm none, the readout keeps its size. How much energies count against forces is
    chosen in the same way. With `random_features=0` this is the plain refit.
    """

    name = "wide"
    description = "as refit, with random features appended to the readout"

    def learn(self, run: FineTuning) -> Learned:
        """Widen and refit; the readout keeps all features until `finish`."""
        most = run.config.refit.random_features
        if most > 0:
            size = run.potential.config.readout_size
            run.sizes = tuple(sorted({size + round(share * most) for share in SHARES_OF_RANDOM}))
            run.potential = widened(run.potential, most, run.config.seed)
            run.step0_weights = copied_weights(run.potential)
        return super().learn(run)

    def finish(self, run: FineTuning, learned: Learned) -> Fitted:
        """Refit with held-out structures included, and cut off features that no weight reads."""
        fitted = super().finish(run, learned)
        if not run.sizes:
            return fitted
        used = _features_used(run, fitted.posterior.size, fitted.kept)
        run.potential = narrowed(run.potential, used)
        return replace(
            fitted,
            refit=replace(fitted.refit, features=used),
            posterior=fitted.posterior.narrowed(used),
        )

    def learn_to_go_on(self, run: FineTuning) -> Learned:
        """Learn, and leave a readout that another strategy can go on with."""
        learned = self.learn(run)
        if run.sizes:
            self.narrow(run, learned)
        return learned

    @staticmethod
    def narrow(run: FineTuning, learned: Learned) -> None:
        """Cut off the features that the refit of `learned` does not use.

        A later refit uses all that are left.
        """
        assert learned.refitted is not None, "a closed-form strategy learns by a refit"
        size = run.sizes[0]
        used = _features_used(run, learned.refitted.posterior.size, learned.kept)
        run.potential = narrowed(run.potential, used)
        # with a size to choose from, even one alone, a later refit takes its derivatives by
        # directions, which pays off with many features
        run.sizes = (used,) if used > size else ()


def _features_used(run: FineTuning, size_of_fit: int, kept: float) -> int:
    """Features that have a weight after a refit to widened ones."""
    # a change that was undone has left no weight of a random feature
    return run.sizes[0] if kept == 0.0 else size_of_fit
