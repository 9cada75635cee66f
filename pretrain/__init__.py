"""Config -> DeepSpeed engine -> one training loop -> checkpoints."""
