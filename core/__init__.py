"""Code that all other packages share. It imports none of them.

It contains errors for users (`errors.py`), settings from YAML and the command line (`settings.py`),
the registry of labels (`labels.py`), units, files, addresses and remote storage, locks, worker
processes, ranks and figures. Start with `errors.py` and `labels.py`.
"""
