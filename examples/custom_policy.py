"""Put a policy of your own beside the reference policies, on the same puzzles."""

import numpy as np
from numpy.typing import NDArray

from plan_envs.catalogue import resolve_task
from plan_envs.evaluation import evaluate_policy, reference_policies

task = resolve_task("sudoku4x4")
instances = task.instances("test", num=100)


def first_legal(
    boards: NDArray[np.int8],
    plans: NDArray[np.int8],
    mask: NDArray[np.int8],
    rng: np.random.Generator,
) -> NDArray[np.int32]:
    """The first legal edit of every plan; shapes [batch, ...] -> actions [batch]."""
    return mask.argmax(axis=1).astype(np.int32)


policies = {"first legal": first_legal, **reference_policies(task.domain, instances)}
for name, policy in policies.items():
    report = evaluate_policy(policy, task.domain, instances)
    print(f"{name:<20} {report.success_rate:6.1%} solved, score {report.mean_score:.2f}")
