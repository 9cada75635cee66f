"""Checks that any potential should pass, for evenfield's own networks and for other projects.

In: a function that makes a model. Out: the failed checks. Open `conformance.py` first.

    from evenfield.testing import check_model

    check_model(make_my_model)          # raises ConformanceError, which lists the failed checks

Under pytest, inherit from `PotentialConformance` instead: each check then becomes a separate test.
The checks need no labels, no trained weights and no packages beyond evenfield's own dependencies.
"""

from .conformance import ConformanceError, Model, PotentialConformance, check_model


__all__ = ["ConformanceError", "Model", "PotentialConformance", "check_model"]
