"""What prevents fine-tuning from making a model worse.

In: a potential before and after a change, and structures. Out: a decision to keep or undo
(`guard.py`), an error that stops the run (`step0.py`), a report of what was forgotten
(`forgetting.py`). Open `guard.py` first.
"""
