"""Pure array functions: attention, log-probs, losses, sampling."""
