"""An invariant network similar to SchNet, as a simple baseline. Open `network.py`."""
