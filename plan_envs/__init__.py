"""Puzzles as plan-editing MDPs: the domain core, Gymnasium shells, instances, rendering, evaluation."""
