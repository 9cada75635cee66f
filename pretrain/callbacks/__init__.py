"""What happens around the steps: averages, guards, validation, metrics, saving.

In: the loop and the report of a step. Out: files, messages, and changes of the run. Open
`callback.py` first: it defines the phases, in which the order of callbacks has no meaning.
"""
