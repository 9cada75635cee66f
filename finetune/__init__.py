"""E0 refit, closed-form readout refit, gradient strategies, few-shot curves, forgetting report."""
