"""Is a model fit for use? Checks, most of which need no labels, and the report of a run.

In: a published model, or the folders of runs. Out: figures with a verdict on the terminal, or one
HTML page. `check.py` defines what a check is, and `report/report.py` writes the page.
"""
