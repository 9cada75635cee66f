"""Compile a potential for inference and training.

In: a potential. Out: the same potential, with compiled functions for energies and slopes. Open
`compiled.py` first. `tracing.py` makes the graphs, also for TorchScript; `padded_shape.py` chooses
the fixed sizes of a compiled training step.
"""
