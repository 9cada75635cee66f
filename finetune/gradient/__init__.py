"""Fine-tuning by gradients, on the loop of pretraining.

In: a potential, structures, and a strategy that chooses the parameters to train. Out: changed
weights and a `GradientReport`. Open `strategy.py` first, then `train.py`.
"""
