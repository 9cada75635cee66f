"""The training loop: engine, loss, optimizer, step. Open `trainer.py` first."""
