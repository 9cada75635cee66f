"""Checks of a model that need no labels. Open `commands.py` first."""
