"""The training loop, for pretraining and for gradient fine-tuning.

In: a stream of batches and a potential. Out: the trained potential; callbacks see every step. Open
`trainer.py` first: the trainer runs the steps. The train module computes the loss of a step
(`train_module.py`), and the engine handles ranks and the optimizer (`engine.py`).
"""
