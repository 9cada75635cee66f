"""What all other packages share; it imports none of them.

Errors for users (`errors.py`), settings from YAML and the command line (`settings.py`), the
registry of labels (`labels.py`), units, files, addresses and the stores behind them, locks, worker
processes, ranks and figures. Open `errors.py` and `labels.py` first.
"""
