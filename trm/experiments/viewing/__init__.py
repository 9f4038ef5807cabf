"""Watching a trained run: in the terminal, as a GIF, and as a page that explains each edit."""
