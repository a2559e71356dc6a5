"""The judge: which clips are compared, and how good they are."""
