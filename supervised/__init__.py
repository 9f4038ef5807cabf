"""Supervised training of the shared backbone: TRM and HRM with ACT, Deep Improvement Supervision.

It builds on `plan_envs` and `trm` alone. Importing this package is cheap on purpose (no torch, no
numba); modules are imported by name, e.g. `from supervised.data_sets.folders import open_dataset`.
"""
