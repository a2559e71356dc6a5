"""From models and a seed to a clip: no disk, no loader, no global random state."""
