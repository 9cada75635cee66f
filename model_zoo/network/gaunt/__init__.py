"""The network that evenfield is built on.

Neighbours are aggregated first. The Clebsch-Gordan contraction and the Gaunt tensor products then
work once per atom instead of once per edge. Open `network.py` first; it has the equations.
"""
