"""Bench: how fast clips come, what the time goes to, and whether a training loop waits."""
