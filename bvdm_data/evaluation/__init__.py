"""Judges: they see clips, never how a clip was made."""
