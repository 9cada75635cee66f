"""Training of the named models.

In: a recipe (`recipes.py`). Out: a model folder with card, probe set and posterior (`build.py`).
"""
