"""The shared backbone of every learner: networks, run folders, devices, jobs, experiments.

`trm.nn`, `trm.runs` and `trm.compute` know neither each other nor the environments;
`trm.experiments` joins them with `plan_envs` into what every learner shares. `trm.bounded` and
`trm.ranges` know nobody and serve all, `plan_envs` too. Modules are imported
by name (`from trm.runs.run import Run`), so that reading a recipe or printing help never loads
torch.
"""
