"""Baselines: PPO, A2C and DQN of stable-baselines3 on our environments, mask and backbone.

Stands on `plan_envs` and `trm` alone and needs the extra `baselines` (`pip install
'upi-trm[baselines]'`). Importing this package is cheap on purpose (no torch, no SB3).
"""
