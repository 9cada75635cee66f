"""Heads for other properties, fitted in closed form to the frozen features of a model.

In: a model, and a file of structures labelled with the property. Out: a model folder with the same
weights and one more head. Open `fit.py` first.
"""
