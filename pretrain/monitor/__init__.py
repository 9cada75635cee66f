"""What can be seen of a run while it trains and afterwards.

In: the files of a run folder. Out: a page that follows the run, and the figure of learning curves.
Open `run_metrics.py` first: it is the one reader of metrics.jsonl.
"""
