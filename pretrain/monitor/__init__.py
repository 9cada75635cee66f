"""Monitor a run while it trains and afterwards.

In: the files of a run folder. Out: a page that shows the progress of the run, and a figure with
learning curves. Open `run_metrics.py` first: it is the only reader of metrics.jsonl.
"""
