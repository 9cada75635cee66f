"""The training loop, for pretraining and for fine-tuning by gradients.

In: a stream of batches and a potential. Out: the trained potential; callbacks see every step. The
trainer knows time (`trainer.py`, open it first), the train module knows the mathematics of a step
(`train_module.py`), the engine knows ranks (`engine.py`).
"""
