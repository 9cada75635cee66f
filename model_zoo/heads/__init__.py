"""Heads that predict other properties from a trained network: charges, dipoles, numbers, classes.

In: the atomic features of a trained network, and linear weights. Out: a property of atoms or
structures. `description.py` says what a head is, `head.py` how it predicts, and `record.py` how it
is stored in a model folder. `evenfield finetune head` fits a head.
"""
