"""Checks of data before they are used for training.

In: a source (`unit_check.py`: are its units and signs right?) or a converted data set
(`inspection.py`: what does it contain, and what looks wrong? `weight_report.py`: what would
importance weights do?). Out: findings, a page, tables. Start with `inspection.py`.
"""
