"""Checks of data before a run is spent on them.

In: a source (`unit_check.py`: are its units and signs right?) or a converted data set
(`inspection.py`: what is in it, and what looks wrong? `weight_report.py`: what would importance
weights do?). Out: findings, a page, tables. Open `inspection.py` first.
"""
