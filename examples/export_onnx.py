"""Play a puzzle with onnxruntime alone, by a graph from `upi-trm export pretrained:sudoku4x4`."""

import sys

import numpy as np
import onnxruntime

from plan_envs.catalogue import resolve_task  # the rules, which need no torch

graph = onnxruntime.InferenceSession(sys.argv[1] if len(sys.argv) > 1 else "policy.onnx")
rules = resolve_task("sudoku4x4").domain
instance = np.array([[1, 0, 0, 4, 0, 0, 1, 0, 2, 0, 0, 3, 0, 0, 2, 0]], np.int8)
plan = rules.initial(instance)
for _ in range(rules.spec.horizon):
    if rules.check(instance, plan).solved[0]:
        break
    mask = rules.action_mask(instance, plan)
    state = {"instance": instance, "plan": plan, "mask": mask}
    (probabilities,) = graph.run(["probabilities"], state)
    plan = rules.edit(instance, plan, probabilities.argmax(axis=1).astype(np.int32))
word = "solved" if rules.check(instance, plan).solved[0] else "not solved"
print(f"{word} with onnxruntime:", *plan.reshape(4, 4))
