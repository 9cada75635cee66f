"""E0 refit, closed-form readout refit, few-shot curves."""
