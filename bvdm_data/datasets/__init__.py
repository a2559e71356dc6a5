"""From clips to a training loop."""
