"""Callbacks around the training steps: averages, guards, validation, metrics, saving.

In: the loop and the report of a step. Out: files, messages, and changes to the run. Open
`callback.py` first: it defines the phases. Within a phase, the order of callbacks does not matter.
"""
