"""Sudoku of any side: fill the blanks of a puzzle."""
