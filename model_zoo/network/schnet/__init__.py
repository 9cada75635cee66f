"""An invariant network in the manner of SchNet: a simple baseline. Open `network.py`."""
