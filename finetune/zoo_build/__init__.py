"""Training of the named models that the package ships.

In: a recipe (`build.py`). Out: a model folder with card, probe set and posterior.
"""
