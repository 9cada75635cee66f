"""What happens around the steps: validation, averaged weights, guards, metrics. Open `callback.py`
first.
"""
