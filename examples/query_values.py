"""Ask a run for the probabilities and values of the edits of a plan.

A value counts in the units of the shaped return. Phi(s) added to it gives the expected reward for
solving the puzzle, which is near the chance that it is solved.
"""

import numpy as np

import upi_trm
from plan_envs.domain import potential

model = upi_trm.load("pretrained:sudoku4x4-hard", threads=1)
instances = model.unseen(1)
plans = model.domain.initial(instances)

probabilities = model.probabilities(instances, plans)[0]
edit_values = model.edit_values(instances, plans)[0]
phi = potential(model.domain.check(instances, plans).score, model.domain.spec.max_score)[0]

print(f"the plan: {model.values(instances, plans)[0] + phi:.1%} expected to be solved")
for edit in np.argsort(-probabilities)[:5]:
    row, column = divmod(int(model.domain.spec.action_cell[edit]), 4)
    print(
        f"{model.domain.spec.action_value[edit]} at row {row + 1}, column {column + 1}:"
        f" probability {probabilities[edit]:.1%}, expected return {edit_values[edit] + phi:.1%}"
    )

deep = model.deepen(instances, plans, depth=8)
print("as the recursion deepens:", np.round(deep.values[:, 0] + phi, 3))
