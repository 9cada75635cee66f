"""Heads of other properties on the frozen network of a model: charges, dipoles, numbers, classes.

In: the features of atoms that a finished network gives, and linear weights. Out: a property of
atoms or structures. A head is data: `description.py` says what it is, `head.py` how it predicts,
`record.py` how it is stored in a model folder. `evenfield finetune head` fits one.
"""
