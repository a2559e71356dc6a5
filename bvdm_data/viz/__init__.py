"""Images of clips, contact sheets, animations, and a page that plays clips."""
