"""The main network of evenfield.

Neighbours are aggregated first. Clebsch-Gordan contraction and Gaunt tensor products then run once
per atom instead of once per edge. Open `network.py` first; it has the equations.
"""
