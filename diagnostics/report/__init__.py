"""The HTML report on one or more runs, and its pictures.

In: run folders, and optionally a few-shot curve, a model card and notes. Out: report.html and
pictures/. Open `report.py` first.
"""
