"""What keeps fine-tuning from making a model worse: step 0, held-out guard, forgetting report.
Open `guard.py` first.
"""
