"""Maze: extend a path from the start to the goal."""
