"""Fine-tuning by linear algebra: readout and reference energies solved exactly. Open `refit.py`
first.
"""
