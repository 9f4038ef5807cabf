"""Play a vector environment with a trained run, in the words of stable-baselines3 users.

`predict(observation, action_masks=...)` is that of sb3-contrib's MaskablePPO, so that a loop which
is written for it plays any run. A PPO model of your own trains on `baselines.vec_adapter`.
"""

import numpy as np

import upi_trm
from plan_envs.vector_env import PlanEditVectorEnv

model = upi_trm.load("pretrained:sudoku4x4", threads=1)
env = PlanEditVectorEnv("sudoku4x4", num_envs=8, autoreset_mode="SameStep")
observation, info = env.reset(seed=0)

episodes, solved = 0, 0
while episodes < 40:
    actions, _ = model.predict(observation, action_masks=observation["action_mask"])
    observation, reward, terminated, truncated, info = env.step(actions)
    ended = terminated | truncated
    episodes += int(ended.sum())
    # The folded reward of an edit that ends an episode is positive only where it solves the puzzle.
    solved += int(np.sum(reward[ended] > 0))
env.close()
print(f"{solved} of {episodes} episodes solved")
