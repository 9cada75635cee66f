"""Compilation of a network for inference and training, by tracing its first derivative. Open
`compiled.py` first.
"""
