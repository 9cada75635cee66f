"""Checkpoints: written atomically, read whole, resumed on any number of ranks. Open
`checkpoints.py` first.
"""
