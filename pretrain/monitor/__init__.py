"""A page in the run folder that follows a training. Open `watch.py` first."""
