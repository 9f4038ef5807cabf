"""The bounds of the paper, measured: exact values on small puzzles, Lipschitz constants, drift."""
