"""Checks that any potential should pass, for evenfield's own networks and for other projects.

In: a function that makes a model. Out: the failed checks. Open `conformance.py` first.

    from evenfield.testing import check_model

    check_model(make_my_model)          # raises ConformanceError, which lists what failed

Under pytest, inherit `PotentialConformance` instead: every check is then a test of its own. The
checks need no labels, no trained weights and no package besides evenfield's own dependencies.
"""

from .conformance import ConformanceError, Model, PotentialConformance, check_model


__all__ = ["ConformanceError", "Model", "PotentialConformance", "check_model"]
