"""Checks of data before training: units and signs, outliers, an inspection page, what weights will
do. Open `inspection.py` first.
"""
