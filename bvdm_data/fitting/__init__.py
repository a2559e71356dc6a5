"""From one annotated video to a generator."""
