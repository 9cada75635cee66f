"""The HTML report of a run: learning curves, parity, element maps, few-shot curves. Open
`report.py` first.
"""
