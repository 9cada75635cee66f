"""Fine-tuning by gradients: readout, LoRA, new elements or all parameters, on pretraining's loop.
Open `train.py` first.
"""
