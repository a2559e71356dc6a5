"""Viewing: pictures of clips, contact sheets, films and a page that plays them."""
