"""A loaded model in other programs: ASE, torch-sim, i-PI, metatomic. Open `calculator.py` first."""
