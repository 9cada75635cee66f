"""Fine-tuning: a pretrained model and a few structures become a better model, never a worse one.

In: a model of `model_zoo` and labelled structures. Out: `FineTuned`, which `save.py` writes as a
model folder. Open `run.py` first. To add a strategy, add a module and a line in `strategies.py`.
"""
