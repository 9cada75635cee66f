"""The network that evenfield is built on: Clebsch-Gordan contraction after aggregation, Gaunt
tensor products on a sphere. Open `backbone.py` first.
"""
