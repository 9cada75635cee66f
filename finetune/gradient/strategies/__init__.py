"""One gradient strategy a module. Each says which parameters learn; start with `full.py`."""
