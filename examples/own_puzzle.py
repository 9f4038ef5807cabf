"""Let a run that ships with the package solve your own puzzle, and look at its edits."""

import upi_trm

PUZZLE = "1..4 ..1. 2..3 ..2.".replace(" ", "")

model = upi_trm.load("pretrained:sudoku4x4", threads=1)
solution = model.solve(PUZZLE)

print(solution)
print(solution.reason)
assert solution.edits is not None  # a greedy episode has edits; a search has none
for edit in solution.edits:
    row, column = divmod(int(model.domain.spec.action_cell[edit]), 4)
    print(f"{model.domain.spec.action_value[edit]} at row {row + 1}, column {column + 1}")
