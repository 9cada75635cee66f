"""The HTML report of one or more runs, and the pictures on it.

In: run folders, and optionally a few-shot curve, a model card and notes. Out: report.html and
pictures/. Open `report.py` first.
"""
