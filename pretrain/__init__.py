"""Pretraining: config -> train module -> engine -> training loop -> checkpoints -> model folder.

In: converted data sets (data_pipelines) and the settings of config.py. Out: a run folder with
metrics.jsonl, checkpoints and, at the end, a model folder. Open `run.py` first: its function `_run`
shows the whole run on one screen.
"""
