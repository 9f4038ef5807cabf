"""Repair: edit a small program until it passes its unit tests."""
